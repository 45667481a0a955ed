"""Breakdowns of the metrics: by sentence length, target size, ..."""

import re
from collections.abc import Callable
from typing import NamedTuple, Protocol

POSITION_WORDS = frozenset(
  'left right top bottom upper lower up down middle center centre corner side edge front back behind above below '
  'under beneath between beside next near nearest closer closest far farther farthest furthest leftmost rightmost '
  'topmost first second third fourth last'.split()
)


class Asked(Protocol):
  """The properties of a sample that breakdowns may use."""

  @property
  def expression(self) -> str: ...
  @property
  def target_pixels(self) -> int: ...
  @property
  def image_pixels(self) -> int: ...


class Breakdown(NamedTuple):
  """A grouping of samples; `label` returns one of `labels`, which are reported in this order."""

  name: str
  labels: tuple[str, ...]
  label: Callable[[Asked], str]


def _length(sample: Asked) -> str:
  words = len(sample.expression.split())
  return '1-2' if words <= 2 else '3-5' if words <= 5 else '6-10' if words <= 10 else '11+'


def _size(sample: Asked) -> str:
  share = sample.target_pixels / sample.image_pixels
  if not share:
    return 'none'
  return '< 1 %' if share < 0.01 else '1-4 %' if share < 0.04 else '4-16 %' if share < 0.16 else '>= 16 %'


def _position(sample: Asked) -> str:
  words = re.findall('[a-z]+', sample.expression.lower())
  return 'yes' if POSITION_WORDS.intersection(words) else 'no'


BREAKDOWNS = (
  Breakdown('words', ('1-2', '3-5', '6-10', '11+'), _length),
  Breakdown('target size', ('none', '< 1 %', '1-4 %', '4-16 %', '>= 16 %'), _size),  # share of the image
  Breakdown('position words', ('no', 'yes'), _position),
)
