// Connects the parts of the page: a picture, a prompt, and the models that run in this browser.

import { decode } from './image.js';
import { encoded, measured, png } from './mask.js';
import { Model, start } from './model.js';
import { listen, shown } from './shared/open.js';
import { Steps } from './shared/prompt.js';
import { overlay, save, stem } from './shared/save.js';
import { View } from './shared/view.js';
import { Words } from './shared/words.js';

const $ = (id) => document.getElementById(id);
const view = new View($('view'));
const steps = new Steps();

let picture = null; // {file, name, bitmap, width, height, pixels}
let answer = null; // {mask, rle, area, box, score, model, took} of a prompt
let asked = 0; // number of the latest request

function say(text, problem = false) {
  $('status').textContent = text;
  $('status').classList.toggle('problem', problem);
}

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

async function open(file, name, sentence = '') {
  let decoded;
  try {
    decoded = await decode(file);
  } catch {
    say(`${name}: this browser cannot show it as a picture; save it as PNG or JPEG`, true);
    return;
  }
  asked += 1;
  picture = { ...decoded, file, name, bitmap: shown(decoded.bitmap) };
  steps.reset();
  answer = null;
  $('text').value = sentence;
  words.clear();
  $('start').hidden = true;
  $('work').hidden = false;
  $('name').textContent = `${name}, ${picture.width} × ${picture.height}`;
  view.show(picture);
  show();
  say('Type what to segment, or click on an object.');
  if (sentence) submit();
}

// Prompts

async function segment() {
  if (!picture) return;
  const number = (asked += 1);
  show();
  if (steps.empty) {
    answer = null;
    show();
    return;
  }
  $('busy').hidden = false;
  if (isLoading()) say('Waiting for the models.');
  const [prompt, about] = [steps.now, picture];
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
    answer = { mask, rle, score, took, model: MODELS[kind], ...measured(mask, about.width) };
    show();
    say(described());
  } catch (error) {
    if (number === asked) fail(error);
  } finally {
    if (number === asked) $('busy').hidden = true;
  }
}

// The text in the field is part of every prompt, even before it is submitted.
const typed = () => $('text').value.trim();

function submit() {
  const text = typed();
  if (!picture) say('Choose a picture first.', true);
  else if (text || steps.now.text) {
    if (text !== steps.now.text) steps.change({ text });
    words.check();
    segment();
  }
}

// Display

const percent = (share) => (share > 0 && share < 0.001 ? '<0.1 %' : `${(100 * share).toFixed(1)} %`);
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
  $('time').textContent = answer.took < 1000 ? `${Math.round(answer.took)} ms` : `${(answer.took / 1000).toFixed(1)} s`;
  $('by').textContent = answer.model;
}

// Events

listen({ choose: $('choose'), input: $('file'), stage: $('stage'), open });
for (const button of document.querySelectorAll('[data-sample]')) {
  button.addEventListener('click', async () => {
    try {
      const response = await fetch(button.dataset.sample);
      if (!response.ok) throw new Error(`${button.dataset.sample} cannot be loaded (${response.status})`);
      await open(await response.blob(), button.dataset.sample.split('/').pop(), button.dataset.text);
    } catch (error) {
      fail(error);
    }
  });
}
$('another').addEventListener('click', () => {
  asked += 1;
  picture = answer = view.picture = null;
  steps.reset();
  $('busy').hidden = $('work').hidden = true;
  $('start').hidden = false;
  show();
  say('');
  $('choose').focus();
});
$('sentence').addEventListener('submit', (event) => {
  event.preventDefault();
  submit();
});
for (const input of document.querySelectorAll('[name=tool]')) {
  input.addEventListener('change', () => view.setTool(input.value));
}
view.addEventListener('point', ({ detail: { at, label } }) => {
  steps.addPoint(...at, label, typed());
  say(`Point ${label ? 'on' : 'off'} the object at ${at.map(Math.round).join(', ')}.`);
  segment();
});
view.addEventListener('box', ({ detail: box }) => {
  steps.change({ box, text: typed() });
  say(`Box from ${box.slice(0, 2).map(Math.round).join(', ')} to ${box.slice(2).map(Math.round).join(', ')}.`);
  segment();
});
view.addEventListener('moved', ({ detail }) => say(detail.map(Math.round).join(', ')));
view.addEventListener('say', ({ detail }) => say(detail));
view.addEventListener('undo', undo);

function undo() {
  if (!steps.canUndo) return;
  steps.undo();
  $('text').value = steps.now.text;
  words.check();
  say('Undone.');
  segment();
}
$('undo').addEventListener('click', undo);
$('clear').addEventListener('click', () => {
  steps.clear();
  $('text').value = '';
  words.clear();
  answer = null;
  say('Cleared.');
  segment();
});
addEventListener('keydown', (event) => {
  const typing = event.target.matches('input[type=text]');
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === 'z' && !event.shiftKey && !typing) {
    event.preventDefault();
    undo();
  }
});
$('opacity').addEventListener('input', () => view.setOpacity($('opacity').value / 100));

$('save-mask').addEventListener('click', async () => {
  save(await png(answer.mask, picture.width, picture.height), `${stem(picture.name)}.mask.png`);
});
$('save-overlay').addEventListener('click', async () => {
  const masks = answer.area ? [answer.rle] : [];
  save(await overlay(picture, masks, steps.now, view.opacity), `${stem(picture.name)}.overlay.png`);
});
$('save-json').addEventListener('click', () => {
  const { rle, score, area, box, model } = answer;
  const { width, height, name } = picture;
  const content = { image: name, width, height, model, prompt: steps.asked(), masks: [{ score, area, box, rle }] };
  save(new Blob([`${JSON.stringify(content, null, 1)}\n`], { type: 'application/json' }), `${stem(name)}.json`);
});
