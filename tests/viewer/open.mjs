// The job of the command line, and a browser that draws without a graphics card.
import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';

export async function open(size) {
  const job = JSON.parse(readFileSync(process.argv[2], 'utf8'));
  const puppeteer = createRequire(job.modules + '/')('puppeteer-core');
  const browser = await puppeteer.launch({
    executablePath: job.chromium,
    headless: true,
    userDataDir: job.profile,
    args: [
      '--no-sandbox', '--disable-gpu-sandbox', '--use-angle=swiftshader', '--enable-unsafe-swiftshader',
      '--ignore-gpu-blocklist', '--disable-dev-shm-usage', `--window-size=${size}`,
    ],
  });
  return { job, browser };
}
