"""Requests of a prediction job, an image and a prompt each; checked, and never all in memory."""

import difflib
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ditsam_jax.errors import UserError
from ditsam_jax.inference.prompts import Prompt, checked, in_words
from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.storage.files import parse_json
from ditsam_jax.terminal import printable

LONGEST_LINE = 2**20  # bytes; a thousand points take 20 KB
_KEYS = ('image', 'text', 'points', 'labels', 'box', 'id')


@dataclass(frozen=True, slots=True)
class Request:
  """A prompt on an image.

  Attributes:
    image: path of the image file.
    name: the image's path as given by the user.
    prompt: a prompt checked by `prompts.checked`.
    id: its id in a file of prompts, or None.
    number: its index among all requests, from 0.
    place: 'FILE line 7', or '' for a request from the command line.
  """

  image: str
  name: str
  prompt: Prompt
  id: str | int | None
  number: int
  place: str

  def key(self) -> int:
    """A 64-bit hash that identifies the request, independent of its position."""
    asked = [self.id, os.path.abspath(self.image), described(self.prompt)]
    return digest(json.dumps(asked))

  def __str__(self) -> str:
    return f'{self.place or printable(self.name)}: {in_words(self.prompt)}'


def digest(text: str) -> int:
  """A 64-bit hash of a text, the same in all processes."""
  return int.from_bytes(hashlib.blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=8).digest(), 'little')


def described(prompt: Prompt) -> dict[str, Any]:
  """Converts a checked prompt to JSON: those of text, points, labels and box that are given."""
  parts: dict[str, Any] = {} if prompt.text is None else {'text': prompt.text}
  for name in ('points', 'labels', 'box'):
    if (array := getattr(prompt, name)) is not None:
      parts[name] = _as_int(array.tolist())
  return parts


def _as_int(value: Any) -> Any:
  """Converts whole numbers to int, recursively, so they are written without '.0'."""
  if isinstance(value, list):
    return [_as_int(item) for item in value]
  return int(value) if value == int(value) else value


class Combinations:
  """All combinations of images and prompts."""

  def __init__(self, images: Iterable[str], prompts: Sequence[Prompt]) -> None:
    self._images, self._prompts = images, prompts

  def __iter__(self) -> Iterator[Request]:
    number = 0
    for image in self._images:
      for prompt in self._prompts:
        yield Request(image, image, prompt, None, number, '')
        number += 1

  def chosen(self, todo: np.ndarray) -> Iterator[Request]:
    """Yields the requests for which `todo` is true."""
    return (request for request in self if todo[request.number])


class PromptFile:
  """The requests in a file of JSON lines, read line by line in each iteration."""

  def __init__(
    self, file: str, config: DitSamConfig, *, images_dir: str | None = None, multimask: bool = False
  ) -> None:
    self._file, self._config, self._multimask = file, config, multimask
    self._folder = os.path.dirname(file) if images_dir is None else images_dir

  def __iter__(self) -> Iterator[Request]:
    return self.chosen(None)

  def chosen(self, todo: np.ndarray | None) -> Iterator[Request]:
    """Yields the requests for which `todo` is true; None yields all. Raises UserError that names the line."""
    number = 0
    for place, line in self._lines():
      if todo is not None and number == len(todo):
        raise UserError(f'{place}: added while this command ran; rerun the command')
      if todo is None or todo[number]:
        yield self._request(place, line, number)
      number += 1

  def _lines(self) -> Iterator[tuple[str, bytes]]:
    name = printable(self._file)
    try:
      if os.path.exists(self._file) and not os.path.isfile(self._file):
        raise UserError(f'--prompts={name}: not a file; it is read twice, so save the lines to a file')
      with open(self._file, 'rb') as stream:
        count = 0
        while line := stream.readline(LONGEST_LINE + 1):
          count += 1
          place = f'{name} line {count:,}'
          if len(line) > LONGEST_LINE:
            raise UserError(f'{place}: longer than {LONGEST_LINE:,} bytes; expected one object per line')
          if count == 1:
            line = line.removeprefix(b'\xef\xbb\xbf')
          if line.strip():
            yield place, line
    except (OSError, ValueError) as error:
      reason = getattr(error, 'strerror', None) or error
      raise UserError(f'--prompts={name}: cannot be read ({reason})') from error

  def _request(self, place: str, line: bytes, number: int) -> Request:
    try:
      row = parse_json(line.rstrip())
      _check_row(row)
      parts = {key: row[key] for key in ('text', 'points', 'labels', 'box') if row.get(key) is not None}
      if not parts:
        raise ValueError("no prompt: expected 'text', 'points' or 'box'")
      prompt = checked(Prompt(**parts, multimask=self._multimask), self._config)
    except RecursionError as error:  # while a nested value is shown
      raise UserError(f'{place}: nested too deeply; expected one flat object') from error
    except (UserError, ValueError) as error:
      raise UserError(f'{place}: {str(error).removeprefix("is ")}') from error
    name = row['image']
    return Request(os.path.join(self._folder, name), name, prompt, row.get('id'), number, place)


def _check_row(row: Any) -> None:
  """Raises ValueError unless keys and types are valid; `prompts.checked` checks the values."""
  if not isinstance(row, dict):
    raise ValueError(f'{_shown(row)}: expected an object, such as {{"image": "a.jpg", "text": "the red circle"}}')
  if unknown := [key for key in row if key not in _KEYS]:
    close = difflib.get_close_matches(unknown[0], _KEYS, 1)
    hint = f'did you mean {close[0]!r}?' if close else f'expected {", ".join(_KEYS)}'
    raise ValueError(f"unknown key '{printable(unknown[0])}'; {hint}")
  if 'image' not in row:
    raise ValueError("no 'image': expected the path of an image file")
  if not isinstance(row['image'], str) or not row['image'] or '\0' in row['image']:
    raise ValueError(f"'image' is {_shown(row['image'])}: expected the path of an image file")
  if row.get('id') is not None and type(row['id']) not in (str, int) or row.get('id') == '':
    raise ValueError(f"'id' is {_shown(row['id'])}: expected a string or a whole number")
  if not isinstance(row.get('text'), str | None):
    raise ValueError(f"'text' is {_shown(row['text'])}: expected a string")
  for key, expected, is_right in (
    ('points', 'a list of [x, y]', lambda points: all(isinstance(point, list) and _numbers(point) for point in points)),
    ('labels', 'a list of 1 and 0, one per point', _numbers),
    ('box', '[x0, y0, x1, y1]', _numbers),
  ):
    value = row.get(key)
    if value is not None and not (isinstance(value, list) and is_right(value)):
      raise ValueError(f"'{key}' is {_shown(value)}: expected {expected}")


def _numbers(values: list) -> bool:
  return all(type(value) in (int, float) for value in values)


def _shown(value: Any) -> str:
  return printable(json.dumps(value, ensure_ascii=False), 60)


def prompts_of(
  texts: Sequence[str], points: Sequence[str], box: str | None, config: DitSamConfig, *, multimask: bool = False
) -> list[Prompt]:
  """Returns the command line's prompts: points and box, combined with each text if there are any.

  Raises:
    UserError: an option is invalid; the message names it.
  """
  parts: dict[str, Any] = {'multimask': multimask}
  if points:
    split = [_split('point', point, (2, 3), 'x,y or x,y,0 (0: not the object)') for point in points]
    parts['points'] = [numbers[:2] for numbers in split]
    parts['labels'] = [numbers[2] if len(numbers) > 2 else 1 for numbers in split]
  if box is not None:
    parts['box'] = _split('box', box, (4,), 'x0,y0,x1,y1')
  if not texts and len(parts) == 1:
    raise UserError('nothing to segment; give --text, --point, --box or --prompts')
  check = functools.partial(checked, config=config)
  return [check(Prompt(text, **parts)) for text in dict.fromkeys(texts)] or [check(Prompt(**parts))]


def _split(option: str, value: str, counts: tuple[int, ...], expected: str) -> list[float]:
  try:
    numbers = [float(part) for part in value.split(',')]
  except ValueError:
    numbers = []
  if len(numbers) not in counts:
    raise UserError(f'--{option}={printable(value)}: expected {expected}, in pixels of the image')
  return numbers
