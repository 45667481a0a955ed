// Underlines unknown words of the sentence while typing.

const WAIT = 250; // milliseconds after a keystroke

export class Words {
  constructor({ input, mirror, note, api }) {
    Object.assign(this, { input, mirror, note, api, timer: 0, places: [], checked: '' });
    input.addEventListener('input', () => {
      this.#draw();
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.check(), WAIT);
    });
    input.addEventListener('scroll', () => this.#follow());
  }

  async check() {
    this.controller?.abort();
    this.controller = new AbortController();
    const text = this.input.value;
    if (!text.trim()) {
      this.clear();
      return;
    }
    try {
      const found = await this.api.post('/api/words', { text }, { signal: this.controller.signal });
      if (text === this.input.value) this.#tell(text, found);
    } catch {
      // the answer to the prompt reports the error
    }
  }

  clear() {
    this.#tell('', { unknown: [], places: [], cut: '' });
  }

  #tell(text, { unknown, places, cut }) {
    this.checked = text;
    this.places = places;
    const parts = [];
    if (unknown.length) parts.push(`The model does not know: ${unknown.join(', ')}.`);
    if (cut) parts.push(`Too long; not read: ${cut}.`);
    this.note.textContent = parts.join(' ');
    this.#draw();
  }

  // Keeps words underlined while typing continues after them.
  #draw() {
    const now = Array.from(this.input.value);
    const before = Array.from(this.checked);
    const parts = [];
    let at = 0;
    for (const [start, end] of this.places) {
      if (now.slice(0, end).join('') !== before.slice(0, end).join('')) break;
      const mark = document.createElement('u');
      mark.textContent = now.slice(start, end).join('');
      parts.push(now.slice(at, start).join(''), mark);
      at = end;
    }
    this.mirror.replaceChildren(...parts, now.slice(at).join(''));
    this.#follow();
  }

  #follow() {
    this.mirror.scrollLeft = this.input.scrollLeft;
  }
}
