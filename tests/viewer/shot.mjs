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
    sets: viewportGridService.getState().viewports.get(id)?.displaySetInstanceUIDs ?? [],
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
    if (shapes) { await pause(500); return; }
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
    if (share > 0.001) { await pause(500); return; }
  }
  throw new Error('nothing was coloured');
}

// At rest: the same three times in a row.
async function settled(page, step, limit, placed = false) {
  let last = '';
  let same = 0;
  for (const begin = Date.now(); Date.now() - begin < limit; await pause(400)) {
    if (placed) await move(page, step);
    const state = await look(page, step.world, step.pixel);
    const text = JSON.stringify(state);
    same = state && text === last ? same + 1 : 0;
    if (same >= 2) return state;
    last = text;
  }
  throw new Error('the viewport did not come to rest');
}

async function show(page, step, patience) {
  const wanted = await thumbnail(page, step.thumbnail, 60000);
  const title = await words(wanted);
  const series = await wanted.evaluate(element => element.id.replace('thumbnail-', ''));
  await wanted.evaluate(element => element.scrollIntoView({ block: 'center' }));
  const box = await wanted.boundingBox();
  await page.mouse.click(box.x + box.width / 2, box.y + box.height / 2, { count: 2 });
  await pause(1000);
  let state = await settled(page, step, 60000);
  for (const answer of step.answers ?? []) {
    for (const begin = Date.now(); Date.now() - begin < 15000; await pause(500)) if (await press(page, answer)) break;
    state = await settled(page, step, 60000);
  }
  const moved = await move(page, step);
  await pause(1000);
  if (step.drawn) await outlined(page, step, patience);
  if (step.coloured) await coloured(page, step, patience);
  state = await settled(page, step, 30000, true);
  // Overlays lie on another series; pictures are their own.
  if (step.thumbnail.startsWith('S:') && !state.sets.includes(series)) throw new Error('another series is shown');
  await page.screenshot({ path: step.out });
  return { ...state, title, moved, out: step.out };
}

const answer = { shots: [], faults: [], again: [] };
const started = Date.now();

// A page with the study. `leave` closes it; what breaks off then is no fault.
async function visit() {
  const page = await browser.newPage();
  let leaving = false;
  const fault = text => { if (!leaving) answer.faults.push(text); };
  page.on('pageerror', error => fault(`page: ${String(error).slice(0, 300)}`));
  page.on('response', reply => {
    if (reply.status() >= 400) fault(`HTTP ${reply.status()} ${reply.url().slice(0, 200)}`);
  });
  await page.setViewport({ width: 1400, height: 900 });
  await page.goto(job.url, { waitUntil: 'domcontentloaded', timeout: 90000 });
  for (const begin = Date.now(); Date.now() - begin < 90000; await pause(500)) {
    await press(page, 'Skip all');
    await press(page, 'Confirm and hide');
    if (await look(page)) break;
  }
  await press(page, 'Skip all');
  return { page, leave: async () => { leaving = true; await page.close(); } };
}

let there = null;  // the page of the last step, and what it shows
async function opened(step, patience) {
  // A fresh page for each object: OHIF keeps the colours of a Parametric Map for what is opened after it.
  if (there?.thumbnail !== step.thumbnail) {
    await there?.leave();
    there = null;
    there = { ...await visit(), thumbnail: step.thumbnail };
  }
  try {
    return await show(there.page, step, patience);
  } catch (error) {
    await there.page.screenshot({ path: step.out }).catch(() => {});
    there.thumbnail = null;
    throw error;
  }
}

try {
  for (const step of job.steps) {
    // On a slow machine OHIF may fill its viewport after the object was asked for, and then shows the first series
    // for good; nothing is drawn or coloured however long one waits. It is asked for again in a fresh page.
    for (let patience = 25000; ; patience *= 2) {
      try {
        answer.shots.push(await opened(step, patience));
        break;
      } catch (error) {
        const text = `${step.thumbnail}: ${String(error).slice(0, 300)}`;
        if (patience > 60000 || Date.now() - started > 360000) {
          answer.faults.push(text);
          answer.shots.push(null);
          break;
        }
        answer.again.push(text);
      }
    }
  }
} catch (error) {
  answer.faults.push(String(error).slice(0, 400));
} finally {
  await browser.close();
}
console.log(JSON.stringify(answer));
