// Masks of one byte a pixel, row by row: figures, COCO's run lengths, and PNG.

// Area, and the box around the mask as [x0, y0, x1, y1] with exclusive ends, or null if it is empty.
export function measured(mask, width) {
  let [area, x0, y0, x1, y1] = [0, width, Infinity, 0, 0];
  for (let i = 0; i < mask.length; i += 1) {
    if (!mask[i]) continue;
    const x = i % width;
    const y = (i - x) / width;
    area += 1;
    [x0, x1] = [Math.min(x0, x), Math.max(x1, x + 1)];
    [y0, y1] = [Math.min(y0, y), Math.max(y1, y + 1)];
  }
  return { area, box: area ? [x0, y0, x1, y1] : null };
}

// Compressed run lengths, as pycocotools writes them; see shared/rle.js for the format.
export function encoded(mask, width, height) {
  const lengths = [];
  let run = 0;
  let last = 0;
  for (let x = 0; x < width; x += 1) {
    for (let y = 0; y < height; y += 1) {
      const value = mask[y * width + x];
      if (value !== last) {
        lengths.push(run);
        run = 0;
        last = value;
      }
      run += 1;
    }
  }
  lengths.push(run);
  const counts = lengths.map((length, i) => packed(i > 2 ? length - lengths[i - 2] : length));
  return { size: [height, width], counts: counts.join('') };
}

function packed(value) {
  let text = '';
  for (let more = true; more; ) {
    let code = value & 31;
    value >>= 5;
    more = code & 16 ? value !== -1 : value !== 0;
    if (more) code |= 32;
    text += String.fromCharCode(code + 48);
  }
  return text;
}

// The mask as a picture, white on black.
export function png(mask, width, height) {
  const canvas = Object.assign(document.createElement('canvas'), { width, height });
  const context = canvas.getContext('2d');
  const image = context.createImageData(width, height);
  const words = new Uint32Array(image.data.buffer);
  mask.forEach((on, i) => (words[i] = on ? 0xffffffff : 0xff000000));
  context.putImageData(image, 0, 0);
  return new Promise((resolve) => canvas.toBlob(resolve, 'image/png'));
}
