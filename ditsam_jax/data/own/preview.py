"""A contact sheet of random samples from a user's own data set: image, mask overlay, sentence and split."""

import functools
import itertools
import random
from typing import NamedTuple

import cv2
import numpy as np

from ditsam_jax.data.own.plan import Plan
from ditsam_jax.data.preparation.images import EncodedImage
from ditsam_jax.drawing.captions import caption
from ditsam_jax.drawing.overlays import overlay
from ditsam_jax.drawing.sheets import Reservoir, fitted
from ditsam_jax.terminal import printable

SAMPLES = 18
_COLUMNS = 3
_TILE, _GAP, _MARGIN = 240, 4, 16  # pixels
_PAPER, _GROUND = 243, 214
_TINT = 0.1  # faint: sentences may mention colours


class _Card(NamedTuple):
  image: np.ndarray  # uint8 [h, w, 3], at the size of a tile
  mask: np.ndarray  # bool [h, w]
  text: str
  figures: tuple[str, ...]


class Preview:
  """Draws random samples from a stream of images, evenly from the splits, keeping only a few thumbnails in memory."""

  def __init__(self, plan: Plan, seed: int = 0):
    self._names, self._random = plan.names, random.Random(seed)
    self._drawn: dict[str, Reservoir[_Card]] = {}  # by split

  def observe(self, split: str, encoded: EncodedImage) -> None:
    """Considers the objects of one image."""
    drawn = self._drawn.setdefault(split, Reservoir(SAMPLES))
    image = functools.cache(lambda: _decoded(encoded.image, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION))
    for index in range(len(encoded.objects)):
      drawn.offer(lambda: self._card(split, image(), encoded, index))

  def sheet(self) -> np.ndarray | None:
    """Returns the sheet, uint8 [h, w, 3]; None without images."""
    # Alternates between splits until the sheet is full.
    turns = itertools.chain.from_iterable(
      itertools.zip_longest(*(_mixed(drawn.kept) for drawn in self._drawn.values()))
    )
    cards = [card for card in turns if card][:SAMPLES]
    if not cards:
      return None
    order = {split: place for place, split in enumerate(self._drawn)}
    drawn = [_drawn(card) for card in sorted(cards, key=lambda card: order[card.figures[-1]])]
    rows = [drawn[start : start + _COLUMNS] for start in range(0, len(drawn), _COLUMNS)]
    width = _MARGIN + min(_COLUMNS, len(drawn)) * (drawn[0].shape[1] + _MARGIN)
    height = _MARGIN + sum(max(len(card) for card in row) + _MARGIN for row in rows)
    sheet = np.full((height, width, 3), _PAPER, np.uint8)
    top = _MARGIN
    for row in rows:
      for column, card in enumerate(row):
        left = _MARGIN + column * (card.shape[1] + _MARGIN)
        sheet[top : top + len(card), left : left + card.shape[1]] = card
      top += max(len(card) for card in row) + _MARGIN
    return sheet

  def _card(self, split: str, image: np.ndarray, encoded: EncodedImage, index: int) -> _Card:
    one, png = encoded.objects[index]
    mask = _decoded(png, cv2.IMREAD_GRAYSCALE) > 127
    text = self._random.choice(one.expressions)
    place = printable(self._names[one.object_id].place, 40)
    nothing = '' if mask.any() else 'no target, '
    return _Card(
      fitted(image, _TILE), fitted(mask, _TILE), text, (f'{nothing}{split}, {place}', f'{nothing}{split}', split)
    )


def _mixed(kept: list[_Card]) -> list[_Card]:
  return random.Random(0).sample(kept, len(kept))


def _decoded(data: bytes, flags: int) -> np.ndarray:
  pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
  assert pixels is not None  # just encoded or checked
  return pixels


def _drawn(card: _Card) -> np.ndarray:
  """Returns the image and its mask overlay side by side, with a caption below."""
  tiles = np.full((_TILE, 2 * _TILE + _GAP, 3), _GROUND, np.uint8)
  over = overlay(card.image, card.mask, tint=_TINT)
  height, width = card.mask.shape
  top, left = (_TILE - height) // 2, (_TILE - width) // 2
  for start, pixels in ((0, card.image), (_TILE + _GAP, over)):
    tiles[top : top + height, start + left : start + left + width] = pixels
  strip = caption((_TILE, tiles.shape[1]), card.text, card.figures)
  return tiles if strip is None else np.concatenate([tiles, strip])
