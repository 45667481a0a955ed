// Pixels of a picture, fitted into a model's square. Resizing gives the bytes of OpenCV and Pillow, which ditsam_jax uses.

const MOST = 16e6; // pixels of a canvas on phones

// Decodes a picture. Transparency becomes white; pictures larger than a canvas are shrunk first.
export async function decode(file) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, Math.sqrt(MOST / (bitmap.width * bitmap.height)));
  const [width, height] = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.floor(side * scale)));
  const canvas = Object.assign(document.createElement('canvas'), { width, height });
  const context = canvas.getContext('2d', { willReadFrequently: true });
  context.fillStyle = '#fff';
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  return { width, height, bitmap: canvas, pixels: context.getImageData(0, 0, width, height).data };
}

// Rounds halves to the nearest even number, as Python does.
const roundToEven = (x) => {
  const floor = Math.floor(x);
  return x - floor === 0.5 ? floor + (floor % 2) : Math.round(x);
};

// Position of the picture in the square. `image` is the part of interface.json that describes the square.
export function placed({ width, height }, image) {
  const longest = Math.max(width, height);
  const sided = (side) => {
    const scaled = side * (image.size / longest);
    return Math.max(1, image.place === 'centre' ? roundToEven(scaled) : Math.floor(scaled + 0.5));
  };
  const box = { left: 0, top: 0, width: sided(width), height: sided(height) };
  if (image.place === 'centre') {
    box.left = Math.max(0, Math.round((image.size - box.width) / 2 - 0.1));
    box.top = Math.max(0, Math.round((image.size - box.height) / 2 - 0.1));
  }
  return box;
}

// The model's input: planes of normalised red, green and blue, with zeros around the picture.
export function square(picture, image) {
  const { left, top, width, height } = placed(picture, image);
  const resize = image.interpolation.includes('OpenCV') ? resizedAsOpenCv : resizedAsPillow;
  const resized = resize(picture, width, height);
  const { size, scale, mean, std } = image;
  const planes = new Float32Array(3 * size * size);
  for (let channel = 0; channel < 3; channel += 1) {
    const levels = Float32Array.from({ length: 256 }, (_, level) => (level / scale - mean[channel]) / std[channel]);
    for (let y = 0; y < height; y += 1) {
      for (let x = 0; x < width; x += 1) {
        planes[(channel * size + top + y) * size + left + x] = levels[resized[4 * (y * width + x) + channel]];
      }
    }
  }
  return planes;
}

// OpenCV's bilinear interpolation of bytes, in fixed point, rounding included. Four bytes a pixel.
export function resizedAsOpenCv({ pixels, width, height }, toWidth, toHeight) {
  if (width === toWidth && height === toHeight) return pixels;
  if (width === 2 * toWidth && height === 2 * toHeight) return halved(pixels, toWidth, toHeight);
  const columns = weights(width, toWidth, true);
  const rows = weights(height, toHeight, false);
  const found = new Uint8ClampedArray(4 * toWidth * toHeight);
  const lines = new Map(); // lines of the picture at the new width
  const line = (y) => {
    if (!lines.has(y)) {
      if (lines.size > 2) lines.delete(lines.keys().next().value);
      const wide = new Int32Array(4 * toWidth);
      columns.forEach(({ from, to, first, second }, x) => {
        const [a, b] = [4 * (y * width + from), 4 * (y * width + to)];
        for (let c = 0; c < 4; c += 1) wide[4 * x + c] = pixels[a + c] * first + pixels[b + c] * second;
      });
      lines.set(y, wide);
    }
    return lines.get(y);
  };
  rows.forEach(({ from, to, first, second }, y) => {
    const [above, below] = [line(from), line(to)];
    for (let i = 0; i < 4 * toWidth; i += 1) {
      found[4 * y * toWidth + i] = (((first * (above[i] >> 4)) >> 16) + ((second * (below[i] >> 4)) >> 16) + 2) >> 2;
    }
  });
  return found;
}

// The two neighbours of each new pixel along an axis, and their weights in units of 1/2048. At the ends both neighbours are
// the same pixel; OpenCV then gives it one weight along rows (`whole`), and two along columns, which rounds differently.
function weights(length, to, whole) {
  const scale = 1 / (to / length); // in this order, which rounds as OpenCV does
  const rounded = (x) => roundToEven(Math.fround(x * 2048));
  const inside = (at) => Math.max(0, Math.min(length - 1, at));
  return Array.from({ length: to }, (_, i) => {
    const at = Math.fround((i + 0.5) * scale - 0.5);
    const from = Math.floor(at);
    const part = whole && (from < 0 || from >= length - 1) ? 0 : Math.fround(at - from);
    return { from: inside(from), to: inside(from + 1), first: rounded(Math.fround(1 - part)), second: rounded(part) };
  });
}

// OpenCV shrinks to a half by averaging.
function halved(pixels, toWidth, toHeight) {
  const found = new Uint8ClampedArray(4 * toWidth * toHeight);
  const stride = 8 * toWidth;
  for (let y = 0; y < toHeight; y += 1) {
    for (let x = 0; x < toWidth; x += 1) {
      for (let c = 0; c < 4; c += 1) {
        const at = 2 * y * stride + 8 * x + c;
        found[4 * (y * toWidth + x) + c] = (pixels[at] + pixels[at + 4] + pixels[at + stride] + pixels[at + stride + 4] + 2) >> 2;
      }
    }
  }
  return found;
}

// Pillow's bilinear interpolation of bytes, which averages when it shrinks: along rows, then along columns.
export function resizedAsPillow({ pixels, width, height }, toWidth, toHeight) {
  const across = averages(width, toWidth);
  const down = averages(height, toHeight);
  const wide = new Uint8ClampedArray(4 * toWidth * height);
  for (let y = 0; y < height; y += 1) {
    across.forEach(({ from, shares }, x) => blend(pixels, 4 * (y * width + from), 4, shares, wide, 4 * (y * toWidth + x)));
  }
  const found = new Uint8ClampedArray(4 * toWidth * toHeight);
  down.forEach(({ from, shares }, y) => {
    for (let x = 0; x < toWidth; x += 1) {
      blend(wide, 4 * (from * toWidth + x), 4 * toWidth, shares, found, 4 * (y * toWidth + x));
    }
  });
  return found;
}

const UNITS = 2 ** 22; // of a share

function blend(pixels, start, step, shares, found, at) {
  for (let c = 0; c < 4; c += 1) {
    let sum = UNITS / 2;
    for (let i = 0; i < shares.length; i += 1) sum += pixels[start + i * step + c] * shares[i];
    found[at + c] = sum >> 22;
  }
}

// The old pixels under each new one along an axis, and their shares of it.
function averages(length, to) {
  const scale = length / to;
  const reach = Math.max(scale, 1);
  return Array.from({ length: to }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const from = Math.max(0, Math.trunc(centre - reach + 0.5));
    const end = Math.min(length, Math.trunc(centre + reach + 0.5));
    const raw = Array.from({ length: end - from }, (_, k) => Math.max(0, 1 - Math.abs((k + from - centre + 0.5) / reach)));
    const total = raw.reduce((sum, share) => sum + share, 0);
    return { from, shares: raw.map((share) => Math.trunc(0.5 + (share / total) * UNITS)) };
  });
}
