// Ways to give the page a picture: a button, drag and drop, or paste.

const SHOWN = 2048; // maximum side of the displayed copy in pixels

// Calls `open` with each picture file and its name.
export function listen({ choose, input, stage, open }) {
  choose.addEventListener('click', () => input.click());
  input.addEventListener('change', () => {
    const [file] = input.files;
    if (file) open(file, file.name);
    input.value = '';
  });
  addEventListener('paste', (event) => {
    const item = [...event.clipboardData.items].find(isPicture);
    const file = item?.getAsFile();
    if (file) {
      event.preventDefault();
      open(file, file.name || 'pasted.png');
    }
  });
  addEventListener('dragover', (event) => {
    event.preventDefault();
    stage.classList.add('dragging');
  });
  addEventListener('dragleave', (event) => {
    if (!event.relatedTarget) stage.classList.remove('dragging');
  });
  addEventListener('drop', (event) => {
    event.preventDefault();
    stage.classList.remove('dragging');
    const [file] = event.dataTransfer.files;
    if (file) open(file, file.name);
  });
}

const isPicture = (item) => item.kind === 'file' && (!item.type || item.type.startsWith('image/'));

// Returns the displayed copy of a bitmap or canvas.
export function shown(bitmap) {
  const scale = Math.min(1, SHOWN / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement('canvas');
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext('2d');
  context.fillStyle = '#fff'; // where it is transparent, as the server does
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = 'high';
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close?.();
  return canvas;
}
