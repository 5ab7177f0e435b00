// Opens a slide in a page around dicom-microscopy-viewer, lays objects over it, takes a picture of each.
// Usage: node slide.mjs JOB.json; prints one JSON object.
import { open } from './open.mjs';

const { job, browser } = await open('1100,820');

const answer = { shots: [], faults: [] };
try {
  for (const step of job.steps) {
    const page = await browser.newPage();
    await page.setViewport({ width: 1100, height: 820 });
    page.on('pageerror', error => answer.faults.push(`page: ${String(error).slice(0, 300)}`));
    page.on('console', message => {
      if (message.type() === 'error') answer.faults.push(`console: ${message.text().slice(0, 300)}`);
    });
    page.on('response', reply => {
      if (reply.status() >= 400) answer.faults.push(`HTTP ${reply.status()} ${reply.url().slice(0, 240)}`);
    });
    try {
      await page.goto(job.url, { waitUntil: 'load' });
      await page.waitForFunction('window.ready === true', { timeout: 60000 });
      const levels = await page.evaluate(() => window.open_slide());
      const came = async () => answer.faults.push(...await page.evaluate(() => window.rest(60000)));
      await came();
      let labels = [];
      if (step.kind) {
        labels = await page.evaluate(
          (kind, wanted, opacity) => window.lay(kind, wanted, opacity), step.kind, step.wanted, step.opacity);
        if (step.kind !== 'annotations') await came();
      }
      const place = await page.evaluate((column, row) => window.place(column, row), ...step.pixel);
      await page.screenshot({ path: step.out });
      answer.shots.push({ levels, labels, place });
    } catch (error) {
      answer.faults.push(`${step.kind ?? 'slide'}: ${String(error).slice(0, 400)}`);
      await page.screenshot({ path: step.out });
      answer.shots.push(null);
    }
    await page.close();
  }
} catch (error) {
  answer.faults.push(String(error).slice(0, 400));
} finally {
  await browser.close();
}
console.log(JSON.stringify(answer));
