"""Segments what sentences name in image files.

  python -m ditsam_jax.predict --image photo.jpg --text='the red circle' --output=runs/predictions

Every image is taken with every text. Each result is two PNG files at the image's own size (the mask as 0/255,
and the image with the mask laid over it) and one line on the screen.
"""

import argparse
import collections
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ditsam_jax import command_line
from ditsam_jax.errors import UserError
from ditsam_jax.inference.prompts import check_text
from ditsam_jax.inference.results import Prediction
from ditsam_jax.inference.segmenter import Segmenter
from ditsam_jax.storage.image_files import read_image, write_png

_NAME_BYTES = 80  # for the image's name and for the text; file systems allow 255 in all


def main(arguments: list[str] | None = None) -> int:
  """Runs the command; returns 0 if every image with every text gave its files, otherwise 2."""
  options = _parse(arguments)
  images, texts = list(dict.fromkeys(options.image)), list(dict.fromkeys(options.text))
  output = _output_folder(options.output)
  predictions = _Predictions(images, output)
  texts = [text for text in texts if predictions.readable(text)]
  if texts:
    total = len(images) * len(texts)
    segmenter = Segmenter(options.checkpoint, batch_size=min(options.batch_size, total))
    predictions.run(segmenter, texts)
  return 2 if predictions.failed else 0


class _Predictions:
  """Goes through images and texts; whatever fails is told in a line, and the rest goes on."""

  def __init__(self, images: list[str], output: Path) -> None:
    self.failed = False
    self._images = images
    self._names = _FileNames(output, images)
    self._progress = tqdm(disable=True)

  def readable(self, text: str) -> bool:
    try:
      check_text(text)
    except UserError as error:
      self._fail(error)
      return False
    return True

  def run(self, segmenter: Segmenter, texts: list[str]) -> None:
    for text in texts:
      if cut := segmenter.tokenizer.cut(text):
        room = segmenter.config.max_text_tokens
        self._say(f'warning: text {text!r}: does not fit in {room} tokens; left out: {cut!r}', sys.stderr)
    total = len(self._images) * len(texts)
    waiting = collections.deque()
    with tqdm(total=total, unit='mask', disable=total <= segmenter.batch_size) as self._progress:
      for result in segmenter.stream(self._pairs(texts, waiting)):
        self._finish(waiting.popleft(), result)
        self._progress.update()

  def _pairs(self, texts: list[str], waiting: collections.deque) -> Iterator[tuple[np.ndarray, str]]:
    """Reads the images; `waiting` gets the names of those on their way through the model, in order."""
    for image in self._images:
      try:
        pixels = read_image(image)
      except UserError as error:
        self._fail(error)
        self._progress.update(len(texts))
        continue
      for text in texts:
        waiting.append(image)
        yield pixels, text

  def _finish(self, image: str, result: Prediction) -> None:
    mask_file, overlay_file = self._names.of(image, result.text)
    try:
      write_png(mask_file, result.mask)
      write_png(overlay_file, result.overlay())
    except UserError as error:
      self._fail(error)
      return
    share = 100 * result.area / result.mask.size
    figures = f'{result.area} pixels ({share:.1f} %), predicted IoU {result.iou:.2f}'
    self._say(f'{image}: {result.text!r}: {figures} -> {mask_file}', sys.stdout)

  def _fail(self, error: UserError) -> None:
    self.failed = True
    self._say(f'error: {error}', sys.stderr)

  def _say(self, line: str, stream) -> None:
    # Names of files may hold line breaks, and bytes that are no text.
    line = ' '.join(line.split()).encode('utf-8', 'replace').decode('utf-8')
    self._progress.write(line, file=stream)


class _FileNames:
  """Names for results, told apart even where images or texts shorten to the same one."""

  def __init__(self, folder: Path, images: list[str]) -> None:
    self._folder = folder
    # Results must not overwrite the images that they come from.
    self._taken = {_key(Path(image)) for image in images}

  def of(self, image: str, text: str) -> tuple[Path, Path]:
    """Files for the mask and for the overlay."""
    name = f'{_slug(Path(image).stem)}.{_slug(text)}'
    number = 1
    while True:
      stem = name if number == 1 else f'{name}-{number}'
      files = self._folder / f'{stem}.mask.png', self._folder / f'{stem}.overlay.png'
      keys = {_key(file) for file in files}
      if not keys & self._taken:
        self._taken |= keys
        return files
      number += 1


def _key(path: Path) -> str:
  # Some file systems do not tell capitals from small letters.
  return os.path.realpath(path).casefold()


def _slug(text: str) -> str:
  """Letters, digits and dashes of `text`, in any script, at most `_NAME_BYTES` bytes of UTF-8."""
  words = re.sub(r'[^\w]+', '-', text.encode('utf-8', 'ignore').decode('utf-8')).strip('-')
  return words.encode('utf-8')[:_NAME_BYTES].decode('utf-8', 'ignore').strip('-') or 'unnamed'


def _output_folder(name: str) -> Path:
  folder = Path(name)
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except (OSError, ValueError) as error:
    reason = getattr(error, 'strerror', None) or error
    raise UserError(f'--output={name}: cannot be made ({reason}); choose another folder') from error
  if not os.access(folder, os.W_OK):
    raise UserError(f'--output={name}: cannot be written to; choose another folder')
  return folder


def _parse(arguments: list[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog='python -m ditsam_jax.predict',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--image', nargs='+', action='extend', required=True, metavar='FILE', help='images')
  parser.add_argument('--text', action='append', required=True, help='what to segment; may be given several times')
  parser.add_argument(
    '--checkpoint', default='shapes', help="folder of a saved model, or 'shapes', the one that comes along"
  )
  parser.add_argument('--output', default='runs/predictions', help='folder for the results (%(default)s)')
  parser.add_argument('--batch-size', type=int, default=8, help='images at once (%(default)s)')
  return parser.parse_args(arguments)


if __name__ == '__main__':
  command_line.run(main)
