// COCO's compressed run lengths: five bits per character, lowest first; differences from the fourth run on.

export function runs(counts) {
  const found = [];
  let at = 0;
  while (at < counts.length) {
    let value = 0;
    let shift = 0;
    let code;
    do {
      code = counts.charCodeAt(at++) - 48;
      value += (code & 31) * 2 ** shift;
      shift += 5;
    } while (code & 32);
    if (code & 16) value -= 2 ** shift;
    if (found.length > 2) value += found[found.length - 2];
    found.push(value);
  }
  return found;
}

// Returns the mask at another size, one byte per pixel, row by row, 1 on the object. Runs go down columns, background first.
export function raster(rle, width, height) {
  const [rows, columns] = rle.size;
  const lengths = runs(rle.counts);
  const mask = new Uint8Array(width * height);
  let run = 0;
  let end = lengths[0];
  let last = -1;
  for (let x = 0; x < width; x += 1) {
    const column = Math.min(columns - 1, Math.floor(((x + 0.5) * columns) / width));
    for (let y = 0; y < height; y += 1) {
      const at = y * width + x;
      if (column === last) {
        mask[at] = mask[at - 1];
        continue;
      }
      const pixel = column * rows + Math.min(rows - 1, Math.floor(((y + 0.5) * rows) / height));
      while (pixel >= end && run < lengths.length - 1) {
        run += 1;
        end += lengths[run];
      }
      mask[at] = run % 2;
    }
    last = column;
  }
  return mask;
}
