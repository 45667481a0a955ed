"""Captions for pictures of any size, in any script."""

import functools
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ditsam_jax.terminal import fitting_length, truncated

_BACKGROUND, _INK, _ACCENT = (16, 20, 27), (255, 255, 255), (255, 214, 110)
_SMALLEST, _LARGEST = 8, 160  # font size in pixels
_SHARE = 0.3  # maximum share of the picture's height
# Pillow's built-in font covers little more than ASCII. Pillow searches the system's font folders for these.
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
  """Draws a strip with `text`, wrapped or truncated to fit, followed by the first of `figures` that fits on a line.

  Args:
    size: height and width of the picture.
    text: text in any script; characters missing from all fonts are written as escapes, '\\u4e2d'.
    figures: the score in ever shorter forms.

  Returns:
    uint8 [rows, width, 3], light letters on a dark background; rows is at most about a third of the height. None if not
    even one line fits.
  """
  height, width = size
  points = round(min(_LARGEST, max(_SMALLEST, 0.035 * (height * width) ** 0.5, 11 if min(size) >= 100 else 0)))
  font, text = _choose_font(' '.join(text.split()), points)
  line_height = sum(font.getmetrics()) + max(1, points // 8)
  margin = max(1, points // 3)
  usable = width - 2 * margin
  most = max(1, int((_SHARE * height - margin) // line_height))
  figure = next((figure for figure in figures if font.getlength(figure) <= usable), None)
  if figure is None:
    return None
  lines = _lines(text, font, usable, font.getlength(figure) + points, most)
  rows = len(lines) * line_height + margin
  if rows > height:
    return None
  strip = Image.new('RGB', (width, rows), _BACKGROUND)
  pen = ImageDraw.Draw(strip)
  for number, line in enumerate(lines):
    pen.text((margin, margin // 2 + number * line_height), line, _INK, font)
  # Drawn separately and right-aligned: next to Arabic or Hebrew text it would come first.
  pen.text((width - margin, margin // 2 + (len(lines) - 1) * line_height), figure, _ACCENT, font, anchor='ra')
  return np.asarray(strip)


def _lines(text: str, font, width: float, reserved: float, most: int) -> list[str]:
  """Wraps text into at most `most` lines no wider than `width`; the last one leaves `reserved` free."""
  lines, rest = [], text
  while len(lines) < most - 1 and font.getlength(rest) > width - reserved:
    line = _first_line(rest, font, width)
    lines.append(line.strip())
    rest = rest[len(line) :].strip()
  return [*lines, _truncated(rest, font, width - reserved)]


def _first_line(text: str, font, width: float) -> str:
  """The longest beginning of the text that fits, at least one character; breaks between words if possible."""
  fits = max(1, fitting_length(text, width, font.getlength))
  if fits >= len(text):
    return text
  space = text.rfind(' ', 0, fits + 1)
  return text[:space] if space > 0 else text[:fits]


def _truncated(text: str, font, width: float) -> str:
  """Truncates text with '…' to fit `width`; returns '' if not even three letters fit."""
  line = truncated(text, width, font.getlength)
  return line if line == text or len(line) > 3 else ''


def _choose_font(text: str, points: int) -> tuple[Any, str]:
  """Returns the first font with all characters, or else the one with most, and the text with missing ones replaced."""
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
