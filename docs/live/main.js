// Connects the parts of the page: a picture, a prompt, and the models that run in this browser.

import { decode } from './image.js';
import { encoded, measured, png } from './mask.js';
import { Model, start } from './model.js';
import { $, control, percent, say, time } from './shared/controls.js';
import { shown } from './shared/open.js';
import { Steps } from './shared/prompt.js';
import { overlay, save, stem } from './shared/save.js';
import { View } from './shared/view.js';
import { Words } from './shared/words.js';

const view = new View($('view'));
const steps = new Steps();

let picture = null; // {file, name, bitmap, width, height, pixels}
let answer = null; // {mask, rle, area, box, score, model, prompt, took} of a prompt
let asked = 0; // number of the latest request

function fail(error) {
  say(error.message, true);
  console.error(error);
}

// The models

const MODELS = { sentences: 'shapes', clicks: 'sam_shapes_multimask' };
const models = load(); // promises, by kind; sentences first
Promise.all(Object.values(models)).then(
  ([{ tokenizer }]) => {
    $('model').textContent = 'in your browser';
    $('model').classList.remove('loading');
    $('words').textContent = knownWords(tokenizer).join(', ');
    if (!picture) say('Ready.');
  },
  (error) => {
    $('model').textContent = 'not loaded';
    $('model').classList.remove('loading');
    fail(error);
  },
);

function load() {
  let bytes = 0;
  const get = async (url) => {
    const response = await fetch(url);
    if (!response.ok) throw new Error(`${url.pathname} cannot be loaded (${response.status})`);
    const parts = [];
    for (const reader = response.body.getReader(); ; ) {
      const { done, value } = await reader.read();
      if (done) break;
      parts.push(value);
      bytes += value.length;
      if (isLoading()) $('model').textContent = `loading ${Math.round(bytes / 1e6)} MB`; // not after a failure
    }
    return new Blob(parts).arrayBuffer();
  };
  const found = {};
  let before = start(get);
  for (const [kind, name] of Object.entries(MODELS)) {
    before = found[kind] = Model.load(new URL(`./models/${name}/`, import.meta.url), get, before);
  }
  return found;
}

const isLoading = () => $('model').classList.contains('loading');
const knownWords = ({ ids }) => [...ids.keys()].filter((word) => /^\p{L}{2,}$/u.test(word)).sort();

const words = new Words({
  input: $('text'),
  mirror: $('mirror'),
  note: $('unknown'),
  api: { post: async (_, { text }) => (await models.sentences).tokenizer.check(text) },
});

// Pictures

async function open(file, name, sentence, isLatest) {
  let decoded;
  try {
    decoded = await decode(file);
  } catch {
    if (isLatest()) say(`${name}: this browser cannot show it as a picture; save it as PNG or JPEG`, true);
    return;
  }
  if (!isLatest()) return;
  asked += 1;
  $('busy').hidden = true;
  picture = { ...decoded, file, name, bitmap: shown(decoded.bitmap) };
  answer = null;
  opened(picture, name, sentence);
}

// Prompts

async function segment() {
  if (!picture) return;
  const number = (asked += 1);
  show();
  $('busy').hidden = steps.empty;
  if (steps.empty) {
    answer = null;
    show();
    return;
  }
  if (isLoading()) say('Waiting for the models.');
  const [prompt, about, question] = [steps.now, picture, steps.asked()];
  try {
    const kind = prompt.text ? 'sentences' : 'clicks';
    const model = await models[kind];
    await new Promise(requestAnimationFrame); // shows the prompt before the computation blocks the page
    if (number !== asked) return;
    const began = performance.now();
    const { mask, score } = await model.segment(about, prompt);
    const took = performance.now() - began;
    if (number !== asked) return;
    const rle = encoded(mask, about.width, about.height);
    answer = { mask, rle, score, took, model: MODELS[kind], prompt: question, ...measured(mask, about.width) };
    show();
    say(described());
  } catch (error) {
    if (number === asked) fail(error);
  } finally {
    if (number === asked) $('busy').hidden = true;
  }
}

// Display

const share = () => percent(answer.area / (picture.width * picture.height));

function described() {
  const predicted = `redicted IoU ${answer.score.toFixed(2)}.`;
  return answer.area ? `Mask of ${share()} of the picture, p${predicted}` : `Nothing found. P${predicted}`;
}

function show() {
  view.prompt = steps.now;
  view.setMasks(answer?.area ? [answer.rle] : []);
  $('undo').disabled = !steps.canUndo;
  $('clear').disabled = steps.empty && !answer;
  $('result').hidden = !answer;
  if (!answer) return;
  $('score').textContent = answer.score.toFixed(3);
  $('area').textContent = share();
  $('time').textContent = time(answer.took);
  $('by').textContent = answer.model;
}

// Events

const { opened } = control({
  view, steps, words, open, segment, show, fail,
  load: async (url) => {
    const response = await fetch(url);
    if (!response.ok) throw new Error(`${url} cannot be loaded (${response.status})`);
    return response;
  },
  forget: () => {
    asked += 1;
    picture = answer = null;
  },
  shows: () => picture !== null,
});

$('save-mask').addEventListener('click', async () => {
  save(await png(answer.mask, picture.width, picture.height), `${stem(picture.name)}.mask.png`);
});
$('save-overlay').addEventListener('click', async () => {
  const masks = answer.area ? [answer.rle] : [];
  save(await overlay(picture, masks, steps.now, view.opacity), `${stem(picture.name)}.overlay.png`);
});
$('save-json').addEventListener('click', () => {
  const { rle, score, area, box, model, prompt } = answer;
  const { width, height, name } = picture;
  const content = { image: name, width, height, model, prompt, masks: [{ score, area, box, rle }] };
  save(new Blob([`${JSON.stringify(content, null, 1)}\n`], { type: 'application/json' }), `${stem(name)}.json`);
});
