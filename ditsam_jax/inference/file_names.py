"""Names of the files of results: readable, never two results in one file, never an input's own."""

import os
import re
import unicodedata
from array import array
from pathlib import Path

import numpy as np

from ditsam_jax.inference.prompts import Prompt
from ditsam_jax.inference.requests import Request, digest

MASK, OVERLAY = '.mask.png', '.overlay.png'
_NAME_BYTES = 80  # of the image's name, and of the prompt's; file systems allow 255 in all


class FileNames:
  """Names are known once all requests have been seen; 40 bytes a request are kept until then.

  'photo.the-red-circle' names a result where no other image is called photo. Where stems repeat, each of those images
  has a folder: 'holidays-photo-jpg/the-red-circle', with a few digits more where even these repeat. Prompts of one
  image that read alike ('the cup', 'the cup?') get the request's number: 'photo.the-cup.17'.
  """

  def __init__(self, folder: Path) -> None:
    self._folder = folder
    self._root = os.path.realpath(folder)
    self._images, self._stems, self._longer, self._prompts = (array('Q') for _ in range(4))
    self._inputs = array('Q')  # images in the folder of the results

  def see(self, request: Request) -> None:
    """Notes a request; to be called once for each, in order."""
    path = os.path.abspath(request.image)
    self._images.append(image := digest(path))
    self._stems.append(digest(_stem(path)))
    self._longer.append(digest(_longer(path)))
    self._prompts.append(digest(f'{image} {_prompt_name(request)}'))
    if (real := _real(path)).startswith(self._root.rstrip(os.sep) + os.sep):
      self._inputs.append(digest(real.casefold()))

  def settle(self, repeated: np.ndarray) -> np.ndarray:
    """Fixes the names; `repeated`: which requests say the same as an earlier one. Returns the images' digests [N]."""
    images, stems, longer, prompts = (
      np.frombuffer(part, np.uint64) if part else np.zeros(0, np.uint64)
      for part in (self._images, self._stems, self._longer, self._prompts)
    )
    self._shared_stems = _shared(stems, images)
    self._shared_longer = _shared(longer, images)
    names, counts = np.unique(prompts[~repeated], return_counts=True)
    self._shared_prompts = set(names[counts > 1].tolist())
    self._taken = set(self._inputs)
    self._images = self._stems = self._longer = self._prompts = None
    return images

  def of(self, request: Request) -> Path:
    """The path of a request's files, without MASK or OVERLAY."""
    path = os.path.abspath(request.image)
    image, stem, longer, prompt = digest(path), _stem(path), _longer(path), _prompt_name(request)
    number = f'.{request.number + 1}'
    ending = number if digest(f'{image} {prompt}') in self._shared_prompts else ''
    if digest(stem) not in self._shared_stems:
      name = f'{_slug(Path(path).stem)}.{prompt}'
    elif digest(longer) not in self._shared_longer:
      name = f'{longer}/{prompt}'
    else:
      name = f'{longer}-{image % 16**8:08x}/{prompt}'
    file = self._folder / (name + ending)
    if not ending and self._taken and any(self._key(file, kind) in self._taken for kind in (MASK, OVERLAY)):
      file = self._folder / (name + number)
    return file

  def _key(self, file: Path, kind: str) -> int:
    return digest(os.path.join(self._root, os.path.relpath(f'{file}{kind}', self._folder)).casefold())


def is_result(path: str, folder: Path) -> bool:
  """Whether a file lies in the folder of the results and is named like one."""
  in_folder = _real(os.path.abspath(path)).startswith(os.path.realpath(folder) + os.sep)
  return path.endswith((MASK, OVERLAY)) and in_folder


def _shared(names: np.ndarray, images: np.ndarray) -> set[int]:
  """Names of more than one image."""
  pairs = np.unique(np.stack([names, images], 1), axis=0)
  found, counts = np.unique(pairs[:, 0], return_counts=True)
  return set(found[counts > 1].tolist())


_folders: dict[str, str] = {}


def _real(path: str) -> str:
  """The path with its folder's links followed; the folder is looked up once."""
  folder, name = os.path.split(path)
  if folder not in _folders:
    if len(_folders) > 1000:
      _folders.clear()
    _folders[folder] = os.path.realpath(folder)
  return os.path.join(_folders[folder], name)


def _stem(path: str) -> str:
  # Some file systems do not tell capitals from small letters.
  return _slug(Path(path).stem).casefold()


def _longer(path: str) -> str:
  return _slug('-'.join(Path(path).parts[-2:]).casefold())


def _prompt_name(request: Request) -> str:
  return _slug((str(request.id) if request.id is not None else _spoken(request.prompt)).casefold())


def _spoken(prompt: Prompt) -> str:
  parts = [] if prompt.text is None else [prompt.text]
  if prompt.points is not None:
    points = [f'{"" if label else "not-"}{x:g}-{y:g}' for (x, y), label in zip(prompt.points, prompt.labels)]
    parts.append(f'point-{"-".join(points)}')
  if prompt.box is not None:
    parts.append('box-' + '-'.join(f'{number:g}' for number in prompt.box))
  return '-'.join(parts)


def _slug(text: str) -> str:
  """Letters, digits and dashes of `text`, in any script, at most `_NAME_BYTES` bytes of UTF-8."""
  text = unicodedata.normalize('NFC', text.encode('utf-8', 'ignore').decode('utf-8'))
  words = re.sub(r'[^\w]+', '-', text).strip('-')
  return words.encode('utf-8')[:_NAME_BYTES].decode('utf-8', 'ignore').strip('-') or 'unnamed'
