"""Readable and unique file names for results; inputs are never overwritten."""

import functools
import os
import re
import unicodedata
from array import array
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ditsam_jax.inference.prompts import Prompt
from ditsam_jax.jobs.requests import Request, digest

MASK, OVERLAY = '.mask.png', '.overlay.png'
METADATA = 'metadata.csv'  # next to the masks 0.png, 1.png, ... of an image; named as in Meta's amg.py
_NUMBERED = re.compile(r'\d+\.png')
_NO_WORD = re.compile(r'\W+')
_NAME_BYTES = 80  # for the image's name, and for the prompt's; file systems allow 255 in total


class FileNames:
  """Assigns names after all requests have been seen; stores 40 bytes per request until then.

  'photo.the-red-circle' is the name of a result if no other image has the stem 'photo'. Images with equal stems get a
  folder each, 'holidays-photo-jpg/the-red-circle', and a hash if even these are equal. Prompts of an image with equal
  names ('the cup', 'the cup?') get the request's number: 'photo.the-cup.17'.
  """

  def __init__(self, folder: Path) -> None:
    self._folder = folder
    self._root = os.path.realpath(folder)
    self._inside = self._root.rstrip(os.sep) + os.sep
    self._images, self._stems, self._longer, self._prompts = (array('Q') for _ in range(4))
    self._inputs = array('Q')  # images in the folder of the results

  def see(self, request: Request) -> None:
    """Registers a request; must be called once for each, in order."""
    image = _image(request.image)
    self._images.append(image.key)
    self._stems.append(image.stem_key)
    self._longer.append(image.longer_key)
    self._prompts.append(digest(f'{image.key} {_prompt_name(request)}'))
    if image.folder == self._root or image.folder.startswith(self._inside):
      self._inputs.append(digest(os.path.join(image.folder, image.file).casefold()))

  def settle(self, repeated: np.ndarray) -> None:
    """Fixes the names; `repeated`, bool [N], marks requests that duplicate an earlier one."""
    images, stems, longer, prompts = (
      np.frombuffer(part, np.uint64) if part else np.zeros(0, np.uint64)
      for part in (self._images, self._stems, self._longer, self._prompts)
    )
    self._shared_stems = _shared(stems, images)
    self._shared_longer = _shared(longer, images)
    names, counts = np.unique(prompts[~repeated], return_counts=True)
    self._shared_prompts = set(names[counts > 1].tolist())
    self._taken = set(self._inputs)
    self._images, self._stems, self._longer, self._prompts = (array('Q') for _ in range(4))

  def of(self, request: Request) -> Path:
    """Returns the path of a request's files, without the suffix MASK or OVERLAY."""
    image, prompt = _image(request.image), _prompt_name(request)
    number = f'.{request.number + 1}'
    ending = number if digest(f'{image.key} {prompt}') in self._shared_prompts else ''
    if image.stem_key not in self._shared_stems:
      name = f'{image.stem}.{prompt}'
    elif image.longer_key not in self._shared_longer:
      name = f'{image.longer}/{prompt}'
    else:
      name = f'{image.longer}-{image.key % 16**8:08x}/{prompt}'
    file = self._folder / (name + ending)
    if not ending and self._taken and any(self._key(file, kind) in self._taken for kind in (MASK, OVERLAY)):
      file = self._folder / (name + number)
    return file

  def _key(self, file: Path, kind: str) -> int:
    return digest(os.path.join(self._root, os.path.relpath(f'{file}{kind}', self._folder)).casefold())


def is_result(path: str, folder: Path) -> bool:
  """Returns whether a file is in the folder of the results and named like a result."""
  if not path.endswith((MASK, OVERLAY)) and not _is_numbered_mask(path):
    return False
  root = os.path.realpath(folder)
  return os.path.commonpath([root, os.path.realpath(os.path.dirname(path) or '.')]) == root


def _is_numbered_mask(path: str) -> bool:
  """Returns whether a file is one of the numbered masks of an image, which lie beside the image's overlay."""
  parent, name = os.path.split(path)
  return _NUMBERED.fullmatch(name) is not None and all(map(os.path.exists, (f'{parent}/{METADATA}', parent + OVERLAY)))


class _Image(NamedTuple):
  """The parts of an image's path that names are built from."""

  folder: str  # with symbolic links resolved
  file: str
  stem: str
  longer: str
  key: int
  stem_key: int
  longer_key: int


@functools.lru_cache(256)
def _image(path: str) -> _Image:
  path = os.path.abspath(path)
  folder, file = os.path.split(path)
  stem = _slug(os.path.splitext(file)[0])
  longer = _slug(f'{os.path.basename(folder)}-{file}'.casefold())
  # Compares case-insensitively, like some file systems.
  return _Image(_real(folder), file, stem, longer, digest(path), digest(stem.casefold()), digest(longer))


def _shared(names: np.ndarray, images: np.ndarray) -> set[int]:
  """Returns the names shared by several images."""
  pairs = np.unique(np.stack([names, images], 1), axis=0)
  found, counts = np.unique(pairs[:, 0], return_counts=True)
  return set(found[counts > 1].tolist())


@functools.lru_cache(256)
def _real(folder: str) -> str:
  return os.path.realpath(folder)


def _prompt_name(request: Request) -> str:
  return _slug((str(request.id) if request.id is not None else _as_text(request.prompt)).casefold())


def _as_text(prompt: Prompt) -> str:
  parts = [] if prompt.text is None else [prompt.text]
  if prompt.points is not None:
    points = [f'{"" if label else "not-"}{x:g}-{y:g}' for (x, y), label in zip(prompt.points, prompt.labels)]
    parts.append(f'point-{"-".join(points)}')
  if prompt.box is not None:
    parts.append('box-' + '-'.join(f'{number:g}' for number in prompt.box))
  return '-'.join(parts) or 'everything'


def _slug(text: str) -> str:
  """Reduces `text` to letters and digits of any script and dashes, at most `_NAME_BYTES` bytes of UTF-8."""
  if not text.isascii():
    text = unicodedata.normalize('NFC', text.encode('utf-8', 'ignore').decode('utf-8'))
  words = _NO_WORD.sub('-', text).strip('-')
  return words.encode('utf-8')[:_NAME_BYTES].decode('utf-8', 'ignore').strip('-') or 'unnamed'
