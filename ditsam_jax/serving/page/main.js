// Connects the parts of the page: a picture, a prompt, and its answer.

import { Api, Failure, pause } from './api.js';
import { $, control, percent, say, time, typed } from './controls.js';
import { shown } from './open.js';
import { Steps } from './prompt.js';
import { raster } from './rle.js';
import { overlay, save, stem } from './save.js';
import { View } from './view.js';
import { Words } from './words.js';

const api = new Api({ askToken, wait: (message, seconds) => wait(`${message}; trying again in ${seconds} s`), waited });
const view = new View($('view'));
const steps = new Steps();
const words = new Words({ input: $('text'), mirror: $('mirror'), note: $('unknown'), api });

let model = null;
let picture = null; // {file, name, bitmap, width, height, id: a promise, or null if it is not on the server, dropped}
let answer = null; // {masks, ...} of a prompt or of everything
let chosen = 0; // index of the chosen candidate
let asking = null; // controller of the current request

const fail = (error) => {
  if (error.name !== 'AbortError') say(error.message, true);
  if (!(error instanceof Failure) && error.name !== 'AbortError') console.error(error);
};

let awaited = ''; // what the page has said that it waits for

function wait(text) {
  awaited = text;
  say(text);
}

// Takes that back, and keeps what has been said since.
function waited() {
  if ($('status').textContent === awaited) say(asking ? 'Segmenting.' : 'Ready.');
}

function askToken(wrong) {
  const dialog = $('token');
  $('token-problem').textContent = wrong ? 'This token is not right.' : '';
  $('token-text').value = '';
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener('close', () => resolve($('token-text').value.trim()), { once: true });
  });
}

async function connect() {
  model = await api.json('/api/model');
  $('model').textContent = model.model;
  $('kept').textContent = duration(model.limits.kept_seconds);
  if (!model.text) {
    $('text').disabled = $('ask').disabled = true;
    $('text').placeholder = 'this model takes no text';
  }
  while (!model.ready) {
    let reason = 'the service cannot be reached';
    try {
      const response = await fetch('/readyz');
      if (response.ok) break;
      reason = (await response.json()).error;
    } catch {
      // or a proxy answers
    }
    if (reason !== awaited && !$('status').matches('.problem')) wait(reason);
    await pause(1);
  }
  waited();
}

const connected = connect();
connected.catch(fail);

const duration = (seconds) =>
  seconds < 90 ? `${Math.round(seconds)} seconds` : seconds < 5400 ? `${Math.round(seconds / 60)} minutes` : `${Math.round(seconds / 3600)} hours`;

// Pictures

async function open(file, name, sentence, isLatest) {
  const text = model?.text ? sentence : '';
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    if (isLatest()) say(`${name}: this browser cannot show it as a picture; save it as PNG or JPEG`, true);
    return;
  }
  if (!isLatest()) return;
  if (model && file.size > model.limits.upload_bytes) {
    say(`${name}: ${Math.ceil(file.size / 2 ** 20)} MiB, expected at most ${Math.floor(model.limits.upload_bytes / 2 ** 20)}; save it smaller`, true);
    return;
  }
  stop();
  forget();
  const { width, height } = bitmap;
  const given = (picture = { file, name, width, height, bitmap: shown(bitmap), id: null, dropped: new AbortController() });
  upload(given).catch((error) => picture === given && fail(error));
  answer = null;
  opened(picture, name, text);
}

// One at a time, because the first answer sets the session's cookie. If it fails, the next request uploads again.
let uploading = connected.catch(() => {});
function upload(picture) {
  picture.id = uploading.then(() => uploaded(picture));
  uploading = picture.id.catch(() => {
    picture.id = null;
  });
  return picture.id;
}

async function uploaded({ file, width, height }) {
  const kept = await api.json('/api/images', { method: 'POST', body: file });
  if (kept.width !== width || kept.height !== height) {
    drop(kept.id);
    throw new Failure(0, `the server reads this picture as ${kept.width} × ${kept.height}; save it as PNG`);
  }
  return kept.id;
}

function forget() {
  picture?.dropped.abort();
  picture?.id?.then(drop, () => {});
  picture = null;
}

function drop(id) {
  api.send(`/api/images/${id}`, { method: 'DELETE' }).catch(() => {});
}

// Requests

function stop() {
  asking?.abort();
  asking = null;
  $('busy').hidden = true;
}

// Asks about the picture, and uploads it first if the server does not have it.
async function request(path, content, options) {
  const asked = picture;
  for (let again = false; ; again = true) {
    options.signal.throwIfAborted();
    const stored = asked.id ?? upload(asked);
    const id = await stored;
    try {
      return await api.send(`/api/images/${id}/${path}`, { method: 'POST', body: JSON.stringify(content), ...options });
    } catch (error) {
      if (error.status !== 404 || again) throw error;
      if (asked.id === stored) asked.id = null; // expired on the server
    }
  }
}

// A new prompt cancels the current one.
async function ask(path, content) {
  stop();
  const controller = (asking = new AbortController());
  $('busy').hidden = false;
  try {
    const response = await request(path, content, { signal: controller.signal });
    return await response.json();
  } finally {
    if (asking === controller) stop();
  }
}

// With Refine, sends the shown mask; after undo, what was sent before.
function question(undone) {
  if (!undone) steps.refine(($('refine').checked && answer?.masks?.[chosen]?.low_res) || null);
  const prompt = steps.asked();
  if ($('multimask').checked) prompt.multimask = true;
  return prompt;
}

async function segment(undone = false) {
  if (!picture) return;
  if (steps.empty) {
    stop();
    answer = null;
    show();
    return;
  }
  const prompt = question(undone);
  const began = performance.now();
  show();
  try {
    const found = await ask('prompts', { ...prompt, low_res: true });
    const { mask, ...told } = prompt;
    answer = { ...found, prompt: mask ? { ...told, mask: 'from an earlier answer' } : told, sent: prompt, took: performance.now() - began };
    chosen = answer.best;
    show();
    say(described());
  } catch (error) {
    fail(error);
  }
}

// Everything, or everything that the sentence refers to.
async function everything() {
  const began = performance.now();
  const text = typed();
  const question = text ? { text } : {};
  say(text ? `Segmenting everything that matches: ${text}.` : 'Segmenting everything.');
  try {
    const found = await ask('everything', question);
    answer = { ...found, everything: true, prompt: question, took: performance.now() - began };
    chosen = 0;
    show();
    const count = answer.masks.length;
    say(count ? `${count} ${count > 1 ? 'objects' : 'object'}.` : 'Nothing found.');
  } catch (error) {
    fail(error);
  }
}

// Display

function described() {
  const { area, score } = answer.masks[chosen];
  if (!area) return `Nothing found. Predicted IoU ${score.toFixed(2)}.`;
  return `Mask of ${percent(area / (answer.width * answer.height))} of the picture, predicted IoU ${score.toFixed(2)}.`;
}

function show() {
  view.prompt = steps.now;
  const masks = answer?.masks ?? [];
  view.setMasks(shownMasks());
  $('undo').disabled = !steps.canUndo;
  $('clear').disabled = steps.empty && !answer;
  $('everything').disabled = !picture;
  $('result').hidden = !masks.length;
  $('candidates').hidden = answer?.everything || masks.length < 2;
  if (!masks.length) return;
  const area = answer.everything ? null : masks[chosen].area;
  $('scored').textContent = answer.everything ? 'Objects' : 'Predicted IoU';
  $('score').textContent = answer.everything ? masks.length : masks[chosen].score.toFixed(3);
  $('area').textContent = area === null ? '–' : percent(area / (answer.width * answer.height));
  $('time').textContent = time(answer.took);
  $('save-mask').disabled = Boolean(answer.everything);
  if (!$('candidates').hidden) showCandidates(masks);
}

// For everything, draws small masks on top.
function shownMasks() {
  if (!answer?.masks.length) return [];
  const masks = answer.everything ? [...answer.masks].sort((a, b) => b.area - a.area) : [answer.masks[chosen]];
  return masks.map(({ rle }) => rle);
}

function showCandidates(masks) {
  const cards = $('candidates').querySelector('.cards');
  if (cards.answer === answer) {
    cards.querySelectorAll('input').forEach((input, number) => (input.checked = number === chosen));
    return;
  }
  cards.answer = answer;
  cards.replaceChildren(
    ...masks.map(({ score, rle }, number) => {
      const input = Object.assign(document.createElement('input'), { type: 'radio', name: 'candidate', checked: number === chosen });
      input.addEventListener('change', () => {
        chosen = number;
        show();
        say(described());
      });
      const label = document.createElement('label');
      label.append(input, thumbnail(rle), `${number + 1}: ${score.toFixed(2)}`);
      return label;
    }),
  );
}

function thumbnail(rle) {
  const width = 120;
  const height = Math.max(1, Math.min(240, Math.round((width * picture.height) / picture.width)));
  const canvas = Object.assign(document.createElement('canvas'), { width, height });
  const context = canvas.getContext('2d');
  context.drawImage(picture.bitmap, 0, 0, width, height);
  const pixels = context.getImageData(0, 0, width, height);
  raster(rle, width, height).forEach((on, i) => {
    for (let c = 0; c < 3; c += 1) {
      const value = pixels.data[4 * i + c];
      pixels.data[4 * i + c] = on ? 0.4 * value + 0.6 * [255, 45, 120][c] : 0.35 * value;
    }
  });
  context.putImageData(pixels, 0, 0);
  canvas.setAttribute('aria-hidden', 'true');
  return canvas;
}

// Events

const { opened } = control({
  view, steps, words, open, segment, show, fail,
  load: (url) => api.send(url, { accept: 'image/*' }),
  forget: () => {
    stop();
    forget();
    answer = null;
  },
  shows: () => picture !== null,
  mostPoints: () => model?.limits.points ?? 62,
});
$('everything').addEventListener('click', everything);
$('multimask').addEventListener('change', () => {
  if (steps.empty) return;
  say('Segmenting.');
  segment();
});
$('refine').addEventListener('change', () => say($('refine').checked ? 'The next prompt refines the shown mask.' : ''));

$('save-mask').addEventListener('click', async () => {
  const { name, dropped } = picture;
  try {
    const response = await request(`prompts?candidate=${chosen}`, answer.sent, { accept: 'image/png', signal: dropped.signal });
    save(await response.blob(), `${stem(name)}.mask.png`);
  } catch (error) {
    fail(error);
  }
});
$('save-overlay').addEventListener('click', async () => {
  save(await overlay(picture, shownMasks(), steps.now, view.opacity), `${stem(picture.name)}.overlay.png`);
});
$('save-json').addEventListener('click', () => {
  const { took, sent, masks, ...told } = answer;
  const bare = masks.map(({ low_res, ...mask }) => mask);
  const content = { image: picture.name, ...told, chosen, masks: bare };
  save(new Blob([`${JSON.stringify(content, null, 1)}\n`], { type: 'application/json' }), `${stem(picture.name)}.json`);
});
