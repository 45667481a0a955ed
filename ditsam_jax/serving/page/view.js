// Shows the picture, masks and prompts on a canvas; handles mouse, touch and keys.

import { raster } from './rle.js';

const MASK = [255, 45, 120];
const ON = '#008a3e';
const OFF = '#d0241b';
const BOX = '#ffdc00';
const DRAG = 5; // CSS pixels after which a click becomes a box

// Colours for many masks, with distinct hues.
const colour = (number) => {
  const hue = (number * 137.508) % 360;
  const part = (shift) => {
    const k = (shift + hue / 30) % 12;
    return Math.round(255 * (0.55 - 0.45 * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  };
  return [part(0), part(8), part(4)];
};

// Returns what the pixels of a canvas show: 0 is outside all masks, 2 n + 1 in mask n, and 2 n + 2 on its outline.
export function regions(rles, width, height) {
  const parts = new Uint16Array(width * height);
  const line = Math.max(1, Math.round(Math.max(width, height) / 450));
  rles.forEach((rle, number) => {
    const mask = raster(rle, width, height);
    for (let y = 0, i = 0; y < height; y += 1) {
      for (let x = 0; x < width; x += 1, i += 1) {
        if (!mask[i]) continue;
        const edge =
          (x >= line && !mask[i - line]) ||
          (x < width - line && !mask[i + line]) ||
          (y >= line && !mask[i - line * width]) ||
          (y < height - line && !mask[i + line * width]);
        parts[i] = 2 * number + (edge ? 2 : 1);
      }
    }
  });
  return { parts, width, height, count: rles.length };
}

// Returns regions as an overlay image: tinted and outlined; for a single mask, the rest is darkened.
export function tinted({ parts, width, height, count }, opacity) {
  const canvas = Object.assign(document.createElement('canvas'), { width, height });
  const context = canvas.getContext('2d');
  const image = context.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const inks = new Uint8ClampedArray(4 * (2 * count + 1));
  if (count === 1) inks.set([10, 12, 18, 130 * opacity]);
  for (let number = 0; number < count; number += 1) {
    const ink = count > 1 ? colour(number) : MASK;
    inks.set([...ink, 255 * opacity, ...ink, 255], 8 * number + 4);
  }
  const colours = new Uint32Array(inks.buffer);
  for (let i = 0; i < pixels.length; i += 1) pixels[i] = colours[parts[i]];
  context.putImageData(image, 0, 0);
  return canvas;
}

// Draws points and box; `scale` is canvas pixels per picture pixel.
export function drawPrompt(context, { points, box }, scale, size) {
  if (box) {
    const [x0, y0, x1, y1] = box.map((value) => value * scale);
    for (const [style, width] of [['#000', size * 0.55], [BOX, size * 0.28]]) {
      context.strokeStyle = style;
      context.lineWidth = width;
      context.strokeRect(x0, y0, x1 - x0, y1 - y0);
    }
  }
  for (const { x, y, label } of points) {
    const [cx, cy] = [x * scale, y * scale];
    for (const [style, radius] of [['#000', size * 1.35], ['#fff', size * 1.2], [label ? ON : OFF, size]]) {
      context.fillStyle = style;
      context.beginPath();
      if (label) context.arc(cx, cy, radius, 0, 7);
      else context.rect(cx - radius, cy - radius, 2 * radius, 2 * radius);
      context.fill();
    }
    context.strokeStyle = '#fff';
    context.lineWidth = size * 0.35;
    context.beginPath();
    context.moveTo(cx - size * 0.6, cy);
    context.lineTo(cx + size * 0.6, cy);
    if (label) {
      context.moveTo(cx, cy - size * 0.6);
      context.lineTo(cx, cy + size * 0.6);
    }
    context.stroke();
  }
}

export class View extends EventTarget {
  constructor(canvas) {
    super();
    this.canvas = canvas;
    this.context = canvas.getContext('2d');
    this.picture = null; // {bitmap, width, height}
    this.rles = [];
    this.prompt = { points: [], box: null };
    this.opacity = 0.45;
    this.tool = 'on';
    this.regions = null; // of the masks, at the canvas's size
    this.layer = null; // the regions in colour
    this.frame = null; // request for the frame that draws a new opacity
    this.drag = null; // the box being drawn
    this.cursor = null; // keyboard cursor
    this.corner = null; // first corner of a box drawn by keyboard
    this.#listen();
    new ResizeObserver(() => this.resize()).observe(canvas.parentElement);
  }

  show(picture) {
    this.picture = picture;
    this.rles = [];
    this.regions = this.layer = null;
    this.cursor = null;
    this.corner = null;
    this.resize();
  }

  setMasks(rles) {
    this.rles = rles;
    this.regions = this.layer = null;
    this.draw();
  }

  setOpacity(opacity) {
    this.opacity = opacity;
    this.layer = null;
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.draw();
    });
  }

  setTool(tool) {
    this.tool = tool;
    this.canvas.classList.toggle('boxing', tool === 'box');
  }

  resize() {
    if (!this.picture) return;
    const { width, height } = this.picture;
    const room = this.canvas.parentElement.clientWidth;
    const tallest = Math.max(240, window.innerHeight * (window.innerWidth > 832 ? 0.74 : 0.55));
    const scale = Math.min(room / width, tallest / height);
    const ratio = window.devicePixelRatio || 1;
    const shown = [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
    const pixels = shown.map((side) => Math.max(1, Math.round(side * ratio)));
    if (pixels[0] !== this.canvas.width || pixels[1] !== this.canvas.height) {
      [this.canvas.width, this.canvas.height] = pixels;
      this.canvas.style.width = `${shown[0]}px`;
      this.canvas.style.height = `${shown[1]}px`;
      this.regions = this.layer = null;
    }
    this.draw();
  }

  draw() {
    if (!this.picture) return;
    const { context, canvas } = this;
    const scale = canvas.width / this.picture.width;
    const size = 7 * (window.devicePixelRatio || 1);
    context.imageSmoothingQuality = 'high';
    context.drawImage(this.picture.bitmap, 0, 0, canvas.width, canvas.height);
    if (this.rles.length) {
      this.regions ??= regions(this.rles, canvas.width, canvas.height);
      this.layer ??= tinted(this.regions, this.opacity);
      context.drawImage(this.layer, 0, 0);
    }
    const box = this.drag ?? (this.corner && this.cursor ? ordered(this.corner, this.cursor) : this.prompt.box);
    drawPrompt(context, { points: this.prompt.points, box }, scale, size);
    if (this.cursor && document.activeElement === canvas) this.#drawCursor(scale, size);
  }

  #drawCursor(scale, size) {
    const { context, canvas } = this;
    const [x, y] = this.cursor.map((value) => value * scale);
    for (const [style, width] of [['#000', 5], ['#fff', 2]]) {
      context.strokeStyle = style;
      context.lineWidth = (width * size) / 7;
      context.beginPath();
      context.moveTo(x, 0);
      context.lineTo(x, canvas.height);
      context.moveTo(0, y);
      context.lineTo(canvas.width, y);
      context.stroke();
    }
  }

  #at(event) {
    const frame = this.canvas.getBoundingClientRect();
    const { width, height } = this.picture;
    const inside = (value, most) => Math.round(10 * Math.max(0, Math.min(most, value))) / 10;
    return [
      inside(((event.clientX - frame.left) / frame.width) * width, width),
      inside(((event.clientY - frame.top) / frame.height) * height, height),
    ];
  }

  #tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }

  #listen() {
    const { canvas } = this;
    let start = null;
    canvas.addEventListener('contextmenu', (event) => event.preventDefault());
    canvas.addEventListener('pointerdown', (event) => {
      if (!this.picture || !event.isPrimary) return;
      this.cursor = null;
      this.corner = null;
      start = { at: this.#at(event), x: event.clientX, y: event.clientY, button: event.button };
      const draws = event.pointerType === 'mouse' ? event.button === 0 : this.tool === 'box';
      if (draws) canvas.setPointerCapture(event.pointerId);
      else start.fixed = true;
    });
    canvas.addEventListener('pointermove', (event) => {
      if (!start || start.fixed) return;
      if (Math.hypot(event.clientX - start.x, event.clientY - start.y) < DRAG && !this.drag) return;
      this.drag = ordered(start.at, this.#at(event));
      this.draw();
    });
    canvas.addEventListener('pointerup', (event) => {
      if (!start) return;
      const box = this.drag;
      const { at, button } = start;
      this.drag = null;
      start = null;
      if (box) {
        if (box[2] > box[0] && box[3] > box[1]) this.#tell('box', box);
        else this.draw();
      } else if (button === 2) this.#tell('point', { at, label: 0 });
      else if (button === 0) this.#mark(at);
    });
    canvas.addEventListener('pointercancel', () => {
      start = null;
      this.drag = null;
      this.draw();
    });
    canvas.addEventListener('keydown', (event) => this.#key(event));
    for (const name of ['focus', 'blur']) canvas.addEventListener(name, () => this.draw());
  }

  // Handles a click or Enter according to the tool.
  #mark(at) {
    if (this.tool === 'box') this.#tell('say', 'Drag to draw a box.');
    else this.#tell('point', { at, label: this.tool === 'on' ? 1 : 0 });
  }

  #key(event) {
    if (!this.picture || event.ctrlKey || event.metaKey || event.altKey) return;
    const { width, height } = this.picture;
    const step = (Math.max(width, height) * (event.shiftKey ? 8 : 1)) / 100;
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    const there = this.cursor ?? [width / 2, height / 2];
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (key in moves) {
      const inside = (value, most) => Math.round(10 * Math.max(0, Math.min(most, value))) / 10;
      this.cursor = [inside(there[0] + moves[key][0], width), inside(there[1] + moves[key][1], height)];
      this.draw();
      this.#tell('moved', this.cursor);
    } else if (key === 'b' || ((key === 'Enter' || key === ' ') && this.tool === 'box')) {
      this.cursor = there;
      if (this.corner) {
        const box = ordered(this.corner, there);
        this.corner = null;
        if (box[2] > box[0] && box[3] > box[1]) this.#tell('box', box);
      } else {
        this.corner = there;
        this.#tell('say', 'First corner of the box. Move the cursor and press B again.');
      }
      this.draw();
    } else if (key === 'Enter' || key === ' ') {
      this.cursor = there;
      this.#mark(there);
    } else if (key === 'n') {
      this.cursor = there;
      this.#tell('point', { at: there, label: 0 });
    } else if (key === 'u' || key === 'Backspace') this.#tell('undo');
    else if (key === 'Escape' && this.corner) {
      this.corner = null;
      this.draw();
    } else return;
    event.preventDefault();
  }
}

const ordered = ([x, y], [u, v]) => [Math.min(x, u), Math.min(y, v), Math.max(x, u), Math.max(y, v)];
