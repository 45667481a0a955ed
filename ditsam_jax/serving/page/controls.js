// What the controls do, in the service's page and in the page that runs in the browser alone.

import { listen } from './open.js';

export const $ = (id) => document.getElementById(id);

export function say(text, problem = false) {
  $('status').textContent = text;
  $('status').classList.toggle('problem', problem);
}

// The text in the field is part of every prompt, even before it is submitted.
export const typed = () => $('text').value.trim();

export const percent = (share) => (share > 0 && share < 0.001 ? '<0.1 %' : `${(100 * share).toFixed(1)} %`);

export const time = (milliseconds) =>
  milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(1)} s`;

const rounded = (numbers) => numbers.map(Math.round).join(', ');

// Connects the controls to the parts of a page; returns `opened(picture, name, text)`, which prepares it for a new picture.
// `open(file, name, text, isLatest)`: shows a picture, unless another has been chosen when it is decoded;
// `load(url)`: a sample's response;   `forget()`: drops picture and answer;
// `shows()`: whether there is a picture;   `segment(undone)`: asks for the current prompt;   `show()`: draws the state;
// `fail(error)`: tells it;   `mostPoints()`: how many points a prompt may have.
export function control({ view, steps, words, open, load, forget, shows, segment, show, fail, mostPoints = () => Infinity }) {
  let choices = 0; // the last one stays, whichever picture is loaded and decoded last

  function choice() {
    const number = (choices += 1);
    return () => number === choices;
  }

  function submit() {
    const text = typed();
    if (!shows()) say('Choose a picture first.', true);
    else if (text || steps.now.text) {
      if (text !== steps.now.text) steps.change({ text });
      words.check();
      say(steps.empty ? 'Cleared.' : 'Segmenting.');
      segment();
    }
  }

  // Prepares the page for a new picture.
  function opened(picture, name, text) {
    steps.reset();
    $('text').value = text;
    words.clear();
    $('start').hidden = true;
    $('work').hidden = false;
    $('name').textContent = `${name}, ${picture.width} × ${picture.height}`;
    view.show(picture);
    show();
    say('Type what to segment, or click on an object.');
    if (text) submit();
  }

  function undo() {
    if (!steps.canUndo) return;
    steps.undo();
    $('text').value = steps.now.text;
    words.check();
    say('Undone.');
    segment(true);
  }

  listen({ choose: $('choose'), input: $('file'), stage: $('stage'), open: (file, name) => open(file, name, '', choice()) });
  for (const button of document.querySelectorAll('[data-sample]')) {
    button.addEventListener('click', async () => {
      const { sample, text } = button.dataset;
      const isLatest = choice();
      try {
        const response = await load(sample);
        const file = await response.blob();
        if (isLatest()) await open(file, sample.split('/').pop(), text, isLatest);
      } catch (error) {
        if (isLatest()) fail(error);
      }
    });
  }
  $('another').addEventListener('click', () => {
    choice();
    forget();
    view.picture = null;
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
    if (steps.now.points.length >= mostPoints()) {
      say(`No more than ${mostPoints()} points.`, true);
      return;
    }
    steps.addPoint(...at, label, typed());
    say(`Point ${label ? 'on' : 'off'} the object at ${rounded(at)}.`);
    segment();
  });
  view.addEventListener('box', ({ detail: box }) => {
    steps.change({ box, text: typed() });
    say(`Box from ${rounded(box.slice(0, 2))} to ${rounded(box.slice(2))}.`);
    segment();
  });
  view.addEventListener('moved', ({ detail }) => say(rounded(detail)));
  view.addEventListener('say', ({ detail }) => say(detail));
  view.addEventListener('undo', undo);
  $('undo').addEventListener('click', undo);
  $('clear').addEventListener('click', () => {
    steps.clear();
    $('text').value = '';
    words.clear();
    say('Cleared.');
    segment();
  });
  addEventListener('keydown', (event) => {
    const typing = event.target.matches('input[type=text], input[type=password]');
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === 'z' && !event.shiftKey && !typing) {
      event.preventDefault();
      undo();
    }
  });
  $('opacity').addEventListener('input', () => view.setOpacity($('opacity').value / 100));
  return { opened };
}
