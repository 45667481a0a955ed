// The prompt and its undo history.

const EMPTY = Object.freeze({ text: '', points: [], box: null, mask: null });

export class Steps {
  constructor() {
    this.now = EMPTY;
    this.before = [];
  }

  get empty() {
    return !this.now.text && !this.now.points.length && !this.now.box;
  }

  get canUndo() {
    return this.before.length > 0;
  }

  change(part) {
    this.before.push(this.now);
    this.now = Object.freeze({ ...this.now, ...part });
  }

  addPoint(x, y, label, text) {
    this.change({ points: [...this.now.points, { x, y, label }], text });
  }

  // Sets the mask that is sent with the current prompt, also after undo.
  refine(mask) {
    this.now = Object.freeze({ ...this.now, mask });
  }

  undo() {
    if (this.before.length) this.now = this.before.pop();
  }

  clear() {
    if (!this.empty) this.change(EMPTY);
  }

  reset() {
    this.now = EMPTY;
    this.before = [];
  }

  // In the API's format.
  asked() {
    const { text, points, box, mask } = this.now;
    const prompt = {};
    if (text) prompt.text = text;
    if (points.length) {
      prompt.points = points.map(({ x, y }) => [x, y]);
      prompt.labels = points.map(({ label }) => label);
    }
    if (box) prompt.box = box;
    if (mask) prompt.mask = mask;
    return prompt;
  }
}
