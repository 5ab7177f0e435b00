// Opens objects of a study in OHIF, brings a place of the patient on the screen and says where it lies in the picture.
// Usage: node shot.mjs JOB.json; prints one JSON object. Needs puppeteer-core beside it or in NODE_PATH.
import { open } from './open.mjs';

const { job, browser } = await open('1400,900');
const pause = milliseconds => new Promise(resolve => setTimeout(resolve, milliseconds));

// A thumbnail's text, as people read it.
const words = handle => handle.evaluate(element => element.innerText.replace(/\s+/g, ' ').trim());

async function press(page, text) {
  return page.evaluate(wanted => {
    const found = [...document.querySelectorAll('button,a,[role=button]')].find(b => b.innerText?.trim() === wanted);
    found?.click();
    return Boolean(found);
  }, text);
}

async function thumbnail(page, start, limit) {
  for (const begin = Date.now(); Date.now() - begin < limit; await pause(500)) {
    const all = await page.$$(
      '[data-cy="study-browser-thumbnail"], [data-cy="study-browser-thumbnail-no-image"]');
    for (const handle of all) if ((await words(handle)).includes(start)) return handle;
  }
  throw new Error(`no thumbnail with ${start}`);
}

// The viewport that has the focus, once it has an image; its state and where a place of the patient lies on it.
const look = (page, world, pixel) => page.evaluate((place, column) => {
  try {  // services answer once the mode has started
    if (!window.services.viewportGridService.getActiveViewportId()) return null;
  } catch {
    return null;
  }
  const { viewportGridService, cornerstoneViewportService } = window.services ?? {};
  const id = viewportGridService?.getActiveViewportId();
  const viewport = id && cornerstoneViewportService.getCornerstoneViewport(id);
  if (!viewport?.getImageData?.()) return null;
  const box = viewport.canvas.getBoundingClientRect();
  place = place ?? (column ? viewport.getImageData().imageData.indexToWorld([...column, 0]) : null);
  const [x, y] = place ? viewport.worldToCanvas([...place]) : [NaN, NaN];
  return {
    kind: viewport.type,
    slice: viewport.getSliceIndex?.() ?? viewport.getCurrentImageIdIndex?.(),
    slices: viewport.getNumberOfSlices?.() ?? viewport.getImageIds?.().length,
    canvas: { x: box.x, y: box.y, width: box.width, height: box.height },
    place: place ? [x + box.x, y + box.y] : null,
    focal: viewport.getCamera?.().focalPoint,
    normal: viewport.getCamera?.().viewPlaneNormal,
  };
}, world ?? null, pixel ?? null);

// Brings the wanted place or frame on the screen. Asked for again while waiting: on a slow machine OHIF fills the
// viewport once more after it looked settled, and then begins at the first image.
const move = (page, step) => page.evaluate(async (place, index) => {
  const { viewportGridService, cornerstoneViewportService } = window.services;
  const viewport = cornerstoneViewportService.getCornerstoneViewport(viewportGridService.getActiveViewportId());
  let done = false;
  if (index !== null && viewport.setImageIdIndex) { await viewport.setImageIdIndex(index); done = true; }
  else if (place && viewport.jumpToWorld) done = viewport.jumpToWorld(place);
  viewport.render();
  return done;
}, step.world ?? null, step.index ?? null);

// Outlines of a report are SVG that comes after the image; on a slow machine well after it.
async function outlined(page, step, limit) {
  for (const begin = Date.now(); Date.now() - begin < limit; await pause(500)) {
    await move(page, step);
    const shapes = await page.evaluate(
      () => document.querySelectorAll('svg.svg-layer :is(path, polyline, polygon, circle, ellipse, line)').length);
    if (shapes) { await pause(1000); return; }
  }
  throw new Error('no outline was drawn');
}

// Colours of a map or of segments come when their frames have been fetched and decoded.
async function coloured(page, step, limit) {
  for (const begin = Date.now(); Date.now() - begin < limit; await pause(500)) {
    await move(page, step);
    const share = await page.evaluate(() => {
      const { viewportGridService, cornerstoneViewportService } = window.services;
      const viewport = cornerstoneViewportService.getCornerstoneViewport(viewportGridService.getActiveViewportId());
      const { width, height } = viewport.canvas;
      const data = viewport.canvas.getContext('2d').getImageData(0, 0, width, height).data;
      let found = 0;
      for (let i = 0; i < data.length; i += 4) {
        if (Math.max(data[i], data[i + 1], data[i + 2]) - Math.min(data[i], data[i + 1], data[i + 2]) > 60) found += 1;
      }
      return found / (width * height);
    });
    if (share > 0.001) { await pause(1000); return; }
  }
  throw new Error('nothing was coloured');
}

async function settled(page, step, limit, placed = false) {
  let last = '';
  for (const begin = Date.now(); Date.now() - begin < limit; await pause(700)) {
    if (placed) await move(page, step);
    const state = await look(page, step.world, step.pixel);
    const text = JSON.stringify(state);
    if (state && text === last) return state;
    last = text;
  }
  throw new Error('the viewport did not come to rest');
}

async function show(page, step) {
  const wanted = await thumbnail(page, step.thumbnail, 60000);
  const title = await words(wanted);
  await wanted.evaluate(element => element.scrollIntoView({ block: 'center' }));
  const box = await wanted.boundingBox();
  await page.mouse.click(box.x + box.width / 2, box.y + box.height / 2, { count: 2 });
  await pause(2500);
  let state = await settled(page, step, 60000);
  for (const answer of step.answers ?? []) {
    for (const begin = Date.now(); Date.now() - begin < 15000; await pause(500)) if (await press(page, answer)) break;
    state = await settled(page, step, 60000);
  }
  const moved = await move(page, step);
  await pause(step.rest ?? 3000);
  if (step.drawn) await outlined(page, step, 60000);
  if (step.coloured) await coloured(page, step, 60000);
  state = await settled(page, step, 30000, true);
  await page.screenshot({ path: step.out });
  return { ...state, title, moved, out: step.out };
}

const answer = { shots: [], faults: [] };
try {
  const page = await browser.newPage();
  await page.setViewport({ width: 1400, height: 900 });
  page.on('pageerror', error => answer.faults.push(`page: ${String(error).slice(0, 300)}`));
  page.on('response', reply => {
    if (reply.status() >= 400) answer.faults.push(`HTTP ${reply.status()} ${reply.url().slice(0, 200)}`);
  });
  for (const step of job.steps) {
    try {
      // A fresh page for each object: OHIF keeps the colours of a Parametric Map for what is opened after it.
      await page.goto(job.url, { waitUntil: 'domcontentloaded' });
      for (const begin = Date.now(); Date.now() - begin < 90000; await pause(700)) {
        await press(page, 'Skip all');
        await press(page, 'Confirm and hide');
        if (await look(page)) break;
      }
      await press(page, 'Skip all');
      answer.shots.push(await show(page, step));
    } catch (error) {
      answer.faults.push(`${step.thumbnail}: ${String(error).slice(0, 300)}`);
      await page.screenshot({ path: step.out });
      answer.shots.push(null);
    }
  }
} catch (error) {
  answer.faults.push(String(error).slice(0, 400));
} finally {
  await browser.close();
}
console.log(JSON.stringify(answer));
