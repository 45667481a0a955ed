"""Captions for pictures of any size, in any script."""

import functools
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_BACKGROUND, _INK, _ACCENT = (16, 20, 27), (255, 255, 255), (255, 214, 110)
_SMALLEST, _LARGEST = 8, 160  # pixels of the font
_SHARE = 0.3  # of the picture's height that a caption may take
# Pillow's own font has ASCII and a few signs more. These are looked for where systems keep fonts.
_FONTS = (
  'DejaVuSans.ttf',
  'NotoSans-Regular.ttf',
  'NotoSansCJK-Regular.ttc',
  'NotoSansDevanagari-Regular.ttf',
  'Arial Unicode.ttf',
  'arial.ttf',
  'msyh.ttc',
  'Hiragino Sans GB.ttc',
)


def caption(size: tuple[int, int], text: str, figures: Sequence[str]) -> np.ndarray | None:
  """A strip with `text`, broken into lines or cut to fit, and behind it the first of `figures` that fits a line.

  Args:
    size: height and width of the picture.
    text: in any script; characters that no font here has are written as their codes, '\\u4e2d'.
    figures: the same in fewer and fewer characters.

  Returns:
    uint8 [rows, width, 3] with light letters on a dark ground, rows at most about a third of the height; None where not
    even one line finds room.
  """
  height, width = size
  points = round(min(_LARGEST, max(_SMALLEST, 0.035 * (height * width) ** 0.5, 11 if min(size) >= 100 else 0)))
  font, text = _fitting(' '.join(text.split()), points)
  line_height = sum(font.getmetrics()) + max(1, points // 8)
  margin = max(1, points // 3)
  room = width - 2 * margin
  most = max(1, int((_SHARE * height - margin) // line_height))
  figure = next((figure for figure in figures if font.getlength(figure) <= room), None)
  if figure is None:
    return None
  lines = _lines(text, font, room, font.getlength(figure) + points, most)
  rows = len(lines) * line_height + margin
  if rows > height:
    return None
  strip = Image.new('RGB', (width, rows), _BACKGROUND)
  pen = ImageDraw.Draw(strip)
  for number, line in enumerate(lines):
    pen.text((margin, margin // 2 + number * line_height), line, _INK, font)
  # On its own at the right: beside Arabic or Hebrew it would come first.
  pen.text((width - margin, margin // 2 + (len(lines) - 1) * line_height), figure, _ACCENT, font, anchor='ra')
  return np.asarray(strip)


def _lines(text: str, font, room: float, taken: float, most: int) -> list[str]:
  """At most `most` lines no wider than `room`, the last of them no wider than `room - taken`."""
  lines, rest = [], text
  while len(lines) < most - 1 and font.getlength(rest) > room - taken:
    line = _broken(rest, font, room)
    lines.append(line.strip())
    rest = rest[len(line) :].strip()
  return [*lines, _shortened(rest, font, room - taken)]


def _broken(text: str, font, room: float) -> str:
  """As much of the text's beginning as fits, at least a character; whole words if it can be."""
  fits = max(1, _longest(text, font, room))
  if fits >= len(text):
    return text
  space = text.rfind(' ', 0, fits + 1)
  return text[:space] if space > 0 else text[:fits]


def _shortened(text: str, font, room: float) -> str:
  """The text, or its beginning and '…'; '' where not even three letters fit."""
  if font.getlength(text) <= room:
    return text
  fits = _longest(text, font, room - font.getlength('…'))
  return f'{text[:fits].rstrip()}…' if fits >= 3 else ''


def _longest(text: str, font, room: float) -> int:
  """How many characters fit."""
  low, high = 0, len(text)
  while low < high:
    middle = (low + high + 1) // 2
    low, high = (middle, high) if font.getlength(text[:middle]) <= room else (low, middle - 1)
  return low


def _fitting(text: str, points: int) -> tuple[Any, str]:
  """The first font that has all characters, else the one that has most; and the text in what it has."""
  best, fewest = None, set()
  for name in ('', *_FONTS):
    font = _font(name, points)
    if font is None:
      continue
    missing = _missing(name, text)
    if not missing:
      return font, text
    if best is None or len(missing) < len(fewest):
      best, fewest = font, missing
  return best, ''.join(_replaced(character, fewest) for character in text)


def _replaced(character: str, missing: set[str]) -> str:
  if character not in missing:
    return character
  letter = unicodedata.normalize('NFKD', character)[0]
  if letter.isascii() and letter.isalnum():
    return letter  # without its accent
  return character.encode('unicode_escape').decode()


def _missing(name: str, text: str) -> set[str]:
  return {character for character in set(text) if not character.isascii() and not _has(name, character)}


@functools.lru_cache(10_000)
def _has(name: str, character: str) -> bool:
  if not character.isprintable():
    return False
  return _drawn(name, character) != _drawn(name, '\uffff')


def _drawn(name: str, character: str) -> tuple[tuple[int, int], bytes]:
  mask: Any = _font(name, 20).getmask(character)
  return mask.size, bytes(mask)


@functools.lru_cache(64)
def _font(name: str, points: int) -> Any:
  if not name:
    return ImageFont.load_default(size=points)
  try:
    return ImageFont.truetype(name, points)
  except OSError:
    return None
