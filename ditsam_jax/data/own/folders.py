"""Reads a folder per split, with an image, a mask and a text file of the same name for every object."""

import os
from collections.abc import Iterator
from pathlib import Path

from ditsam_jax.data.own.entries import Context, Entry, Rejected
from ditsam_jax.data.preparation import problems
from ditsam_jax.errors import UserError
from ditsam_jax.storage.files import read_bytes
from ditsam_jax.storage.image_files import endings
from ditsam_jax.terminal import printable

_PARTS = ('images', 'masks', 'texts')  # optional subfolders of a split
_MOST_TEXT = 2**24  # bytes of a text file


def read(context: Context) -> Iterator[Entry]:
  """Yields an entry per image. Raises UserError if there are none.

  A split's folder contains NAME.jpg (or another image format), NAME.txt with one sentence per line, and the mask:
  NAME.png, or NAME.mask.png if the image is a PNG. Alternatively, it has subfolders images, masks and texts.
  """
  root = context.annotations
  try:
    splits = [path for path in sorted(root.iterdir()) if path.is_dir() and path.name not in _PARTS]
    any_found = False
    for folder, split in [(root, None), *((path, path.name) for path in splits if not path.name.startswith('.'))]:
      for entry in _entries(folder, split, context):
        any_found = True
        yield entry
  except OSError as error:
    raise UserError(f'{printable(root)}: cannot be read ({error.strerror or error})') from error
  if not any_found and not context.found:
    raise UserError(
      f'{printable(root)} has no images with texts; expected a folder per split with NAME.jpg, NAME.png (the mask) and '
      f'NAME.txt'
    )


def _entries(folder: Path, split: str | None, context: Context) -> Iterator[Entry]:
  images, masks, texts = (folder / part if (folder / part).is_dir() else folder for part in _PARTS)
  if texts == folder:
    texts = images
  files = sorted(path.name for path in images.iterdir() if path.suffix.lower() in endings())
  stems = {os.path.splitext(file)[0] for file in files if not file.lower().endswith('.png')}
  for file in files:
    stem, ending = os.path.splitext(file)
    together = masks == images
    if together and ending.lower() == '.png' and (stem in stems or stem.endswith('.mask')):
      continue  # a mask
    mask = f'{stem}.mask.png' if together and ending.lower() == '.png' else f'{stem}.png'
    place = os.path.relpath(images / file, context.annotations)
    try:
      sentences = _sentences(texts / f'{stem}.txt')
    except Rejected as error:
      context.reject(place, error)
      continue
    yield Entry(place, place, sentences, os.path.relpath(masks / mask, context.annotations), split)


def _sentences(file: Path) -> tuple[str, ...]:
  """Returns the non-blank lines of a text file. Raises Rejected."""
  try:
    text = read_bytes(file, most_bytes=_MOST_TEXT).decode('utf-8-sig')
  except UserError as error:
    raise Rejected(problems.NO_SENTENCE, str(error)) from error
  except UnicodeDecodeError as error:
    raise Rejected(problems.BAD_LINE, f'{file.name} is not UTF-8 text') from error
  return tuple(' '.join(line.split()) for line in text.splitlines() if line.strip())
