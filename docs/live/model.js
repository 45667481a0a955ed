// An exported model in ONNX Runtime: interface.json says what its programs take.

import { placed, square } from './image.js';
import { Tokenizer } from './tokenizer.js';
import * as ort from './vendor/ort.js';

const KEPT = 8; // embeddings per picture

const floats = (data, shape) => new ort.Tensor('float32', Float32Array.from(data), shape);
const integers = (data) => new ort.Tensor('int64', BigInt64Array.from(data, BigInt), [1, data.length]);

// Downloads ONNX Runtime from this site. `get` returns the bytes of a URL.
export async function start(get) {
  ort.env.logLevel = 'error';
  ort.env.wasm.numThreads = 1; // more need headers that plain file servers do not send
  ort.env.wasm.wasmBinary = await get(new URL('./vendor/ort.wasm', import.meta.url));
}

export class Model {
  // `folder` is the URL of an export, ending in a slash; `get` returns the bytes of a URL. Downloads at once, and builds the
  // programs when the promise `ready` is fulfilled.
  static async load(folder, get, ready) {
    const text = async (name) => new TextDecoder().decode(await get(new URL(name, folder)));
    const model = new Model();
    const about = (model.about = JSON.parse(await text('interface.json')));
    const files = about.programs.map(({ file }) => file);
    const contents = await Promise.all(files.map((file) => get(new URL(file, folder))));
    await ready;
    model.programs = {};
    for (const [i, file] of files.entries()) {
      model.programs[file.replace('.onnx', '')] = await ort.InferenceSession.create(new Uint8Array(contents[i]));
    }
    if (about.text) model.tokenizer = new Tokenizer(await text(about.text.vocabulary), about.text.tokens);
    model.embeddings = new WeakMap(); // picture -> sentence -> embedding
    return model;
  }

  // The mask of a prompt at the picture's size, one byte a pixel, and its predicted IoU.
  async segment(picture, { text = '', points = [], box = null }) {
    const features = await this.#read(text);
    const embedding = await this.#encode(picture, text, features);
    const { left, top, width, height } = placed(picture, this.about.image);
    const corners = box ? [{ x: box[0], y: box[1], label: 2 }, { x: box[2], y: box[3], label: 3 }] : [];
    const end = points.length && !box ? [{ x: 0, y: 0, label: -1 }] : [];
    const marks = [...points, ...end, ...corners];
    const side = this.#input('mask_input').shape[3];
    const answer = await this.programs.decoder.run({
      image_embeddings: embedding,
      point_coords: floats(
        marks.flatMap(({ x, y }) => [(x * width) / picture.width + left, (y * height) / picture.height + top]),
        [1, marks.length, 2],
      ),
      point_labels: floats(marks.map(({ label }) => label), [1, marks.length]),
      mask_input: floats(new Float32Array(side * side), [1, 1, side, side]),
      has_mask_input: floats([0], [1]),
      orig_im_size: floats([picture.height, picture.width], [2]),
      ...(features && { text_features: features }),
    });
    const logits = answer.masks.data;
    const mask = new Uint8Array(logits.length);
    for (let i = 0; i < logits.length; i += 1) mask[i] = logits[i] > this.about.mask_logit;
    return { mask, score: answer.iou_predictions.data[0] };
  }

  // Features of a sentence; none for '', and null for models without text.
  async #read(text) {
    if (!this.tokenizer) return null;
    if (!text) return floats([], [1, 0, this.#input('text_features').shape[2]]);
    const { ids, mask } = this.tokenizer.encode(text);
    return (await this.programs.text_encoder.run({ token_ids: integers(ids), token_mask: integers(mask) })).text_features;
  }

  // The picture's embedding, again for every sentence that enters the image encoder.
  async #encode(picture, text, features) {
    const enters = this.about.text?.enters_the_image_encoder;
    const key = enters ? text : '';
    const known = this.embeddings.get(picture) ?? new Map();
    this.embeddings.set(picture, known);
    if (!known.has(key)) {
      const { size } = this.about.image;
      const images = new ort.Tensor('float32', square(picture, this.about.image), [1, 3, size, size]);
      const answer = await this.programs.image_encoder.run({ images, ...(enters && { text_features: features }) });
      if (known.size >= KEPT) known.delete(known.keys().next().value);
      known.set(key, answer.image_embeddings);
    }
    return known.get(key);
  }

  // What the decoder takes under a name.
  #input(name) {
    const decoder = this.about.programs.find(({ file }) => file === 'decoder.onnx');
    return decoder.inputs.find((input) => input.name === name);
  }
}
