// Downloads: the mask from the server, the overlay drawn from the local picture, and the answer as JSON.

import { drawPrompt, regions, tinted } from './view.js';

const MOST = 16e6; // maximum pixels of a canvas on phones

export function save(blob, name) {
  const link = Object.assign(document.createElement('a'), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

export const stem = (name) => name.replace(/\.[^.]*$/, '') || 'picture';

// Returns the picture at full size, or as large as a canvas may be.
export async function overlay({ file, width, height }, rles, prompt, opacity) {
  const scale = Math.min(1, Math.sqrt(MOST / (width * height)));
  const canvas = document.createElement('canvas');
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = canvas.getContext('2d');
  const bitmap = await createImageBitmap(file);
  context.fillStyle = '#fff';
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  context.drawImage(tinted(regions(rles, canvas.width, canvas.height), opacity), 0, 0);
  drawPrompt(context, prompt, scale, Math.max(4, 0.012 * Math.max(canvas.width, canvas.height)));
  return new Promise((resolve) => canvas.toBlob(resolve, 'image/png'));
}
