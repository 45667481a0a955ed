"""Device programs of automatic mask generation besides the model: measure masks, draw them, suppress duplicates.

Masks are resized to the image's own size tile by tile, with the matrices of `Framed.own_size_operators`. Program shapes
therefore do not depend on the image, and full-size logits are never stored.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = Any  # JAX or NumPy arrays, including scalars

_FAR = np.iinfo(np.int32).max
_FEWEST_BOXES = 1024  # smallest size that `suppress` is compiled for; then 4096, and so on


class Measures(NamedTuple):
  """Measures of C masks at the image's own size, int32 [C] each; box ends are inclusive, -1 for empty masks."""

  area: Array
  inside: Array  # pixels of the mask that are inside a given one
  inner: Array  # pixels above the threshold plus the offset
  outer: Array  # pixels above the threshold minus the offset
  left: Array
  top: Array
  right: Array
  bottom: Array

  @classmethod
  def none(cls, count: int) -> 'Measures':
    """Returns the measures before the first tile."""
    zero, far, before = (np.full(count, value, np.int32) for value in (0, _FAR, -1))
    return cls(zero, zero, zero, zero, far, far, before, before)


class Tile(NamedTuple):
  """A tile of the image's own pixels: rows of the operators, f32 [T, S/4], padded with zeros, and its position."""

  rows: Array
  columns: Array
  top: Array  # int32 [], the tile's first row
  left: Array
  height: Array  # int32 [], rows inside the image
  width: Array


def tiles_of(rows: np.ndarray, columns: np.ndarray, side: int) -> list[Tile]:
  """Returns the tiles of an image, row by row, from its operators `rows` f32 [h, S/4] and `columns` f32 [w, S/4]."""

  def parts(operator: np.ndarray):
    for start in range(0, len(operator), side):
      part = operator[start : start + side]
      padded = np.pad(part, ((0, side - len(part)), (0, 0)))
      yield padded, np.int32(start), np.int32(len(part))

  across = list(parts(columns))
  return [
    Tile(own, other, top, left, height, width) for own, top, height in parts(rows) for other, left, width in across
  ]


@jax.jit
def pick(logits: jax.Array, row: Array, mask: Array) -> jax.Array:
  """Returns one mask [S/4, S/4] of logits [R, M, S/4, S/4]."""
  return logits[row, mask]


@jax.jit
def measure(
  measures: Measures, logits: Sequence[jax.Array], tile: Tile, wanted: Array, threshold: Array, offset: Array
) -> Measures:
  """Adds a tile to the measures of C masks.

  Args:
    measures: measures so far.
    logits: C arrays f32 [S/4, S/4].
    tile: the tile.
    wanted: bool [T, T], the tile's pixels that count as inside.
    threshold: f32 [], of masks.
    offset: f32 [], of the stability.
  """
  values = _own_size(logits, tile)
  inside = _inside(tile)
  mask = (values > threshold) & inside
  rows, columns = mask.any(2), mask.any(0)  # [T, C] and [C, T]
  y = tile.top + jnp.arange(len(tile.rows), dtype=jnp.int32)[:, None]
  x = tile.left + jnp.arange(len(tile.columns), dtype=jnp.int32)[None]

  def count(limit: Array) -> jax.Array:
    return ((values > limit) & inside).sum((0, 2), dtype=jnp.int32)

  return Measures(
    measures.area + mask.sum((0, 2), dtype=jnp.int32),
    measures.inside + (mask & wanted[:, None]).sum((0, 2), dtype=jnp.int32),
    measures.inner + count(threshold + offset),
    measures.outer + count(threshold - offset),
    jnp.minimum(measures.left, jnp.where(columns, x, _FAR).min(1)),
    jnp.minimum(measures.top, jnp.where(rows, y, _FAR).min(0)),
    jnp.maximum(measures.right, jnp.where(columns, x, -1).max(1)),
    jnp.maximum(measures.bottom, jnp.where(rows, y, -1).max(0)),
  )


@jax.jit
def judge(
  measures: Measures, stability_threshold: Array, least_inside: Array, crop: Array, image: Array, margin: Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Selects stable masks that are not cut off by their crop and lie mostly inside a given mask.

  A mask that ends at an edge of its crop, but not of the image, is probably cut off. Empty masks have stability NaN and
  are dropped unless the threshold keeps all.

  Args:
    measures: measures of C masks over all tiles.
    stability_threshold: f32 []; 0 and below keeps all.
    least_inside: f32 [], smallest share of a mask that is inside the given one.
    crop: f32 [4], the crop's box in the image.
    image: f32 [4], the image's box.
    margin: f32 [], distance in pixels within which a mask touches an edge.

  Returns:
    Kept bool [C], stability f32 [C], boxes int32 [C, 4] in pixels of the crop, zeros for empty masks.
  """
  stability = measures.inner / measures.outer  # f32; inner pixels are a subset of the outer ones
  boxes = jnp.stack([measures.left, measures.top, measures.right, measures.bottom], 1)
  boxes = jnp.where(measures.right[:, None] < 0, 0, boxes)
  moved = boxes + jnp.tile(crop[:2], 2)
  at_crop, at_image = jnp.abs(moved - crop) <= margin, jnp.abs(moved - image) <= margin
  kept = (stability >= stability_threshold) | (stability_threshold <= 0)
  kept &= measures.inside >= least_inside * measures.area
  return kept & ~(at_crop & ~at_image).any(1), stability, boxes


@jax.jit
def draw(logits: Sequence[jax.Array], tile: Tile, threshold: Array) -> jax.Array:
  """Draws a tile of C masks, eight pixels per byte: uint8 [T, C, T/8]."""
  return jnp.packbits(_own_size(logits, tile) > threshold, axis=2)


@jax.jit
def suppress(boxes: Array, scores: Array, threshold: Array) -> jax.Array:
  """Non-maximum suppression: each box, from the highest score down, drops lower ones that overlap it too much.

  Args:
    boxes: f32 [N, 4], (x0, y0, x1, y1).
    scores: f32 [N], -inf for padding, which is never kept.
    threshold: f32 [], largest IoU that is kept.

  Returns:
    Kept bool [N].
  """
  order = jnp.argsort(-scores, stable=True)
  sorted_boxes, count = boxes[order], len(boxes)
  areas = (sorted_boxes[:, 2] - sorted_boxes[:, 0]) * (sorted_boxes[:, 3] - sorted_boxes[:, 1])

  def step(i: jax.Array, kept: jax.Array) -> jax.Array:
    corner = jnp.minimum(sorted_boxes[:, 2:], sorted_boxes[i, 2:]) - jnp.maximum(
      sorted_boxes[:, :2], sorted_boxes[i, :2]
    )
    overlap = jnp.maximum(corner, 0).prod(1)
    dropped = overlap / (areas + areas[i] - overlap) > threshold  # NaN for two boxes without area: kept
    return kept & ~(dropped & (jnp.arange(count) > i) & kept[i])

  kept = jax.lax.fori_loop(0, jnp.isfinite(scores).sum(), step, jnp.isfinite(scores)[order])
  return jnp.zeros(count, bool).at[order].set(kept)


def kept_boxes(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
  """Returns indices int [K] of the boxes [N, 4] that `suppress` keeps, highest scores first, ties in order."""
  count, room = len(boxes), _FEWEST_BOXES
  while room < count:
    room *= 4
  filled = np.zeros((room, 4), np.float32)
  filled[:count] = boxes
  ranked = np.full(room, -np.inf, np.float32)
  ranked[:count] = scores
  kept = np.asarray(suppress(filled, ranked, np.float32(threshold)))[:count]
  order = np.argsort(-ranked[:count], kind='stable')
  return order[kept[order]]


def _own_size(logits: Sequence[jax.Array], tile: Tile) -> jax.Array:
  """Resizes C masks [S/4, S/4] to a tile, f32 [T, C, T] (row, mask, column), with two matrix products."""
  stacked = jnp.stack(logits, 1)  # [rows, C, columns]
  side, count, _ = stacked.shape
  exact = functools.partial(jnp.matmul, precision='highest')  # accelerators reduce f32 precision by default
  wide = exact(stacked.reshape(side * count, side), tile.columns.T)
  return exact(tile.rows, wide.reshape(side, -1)).reshape(len(tile.rows), count, -1)


def _inside(tile: Tile) -> jax.Array:
  """Returns which pixels of the tile are inside the image, bool [T, 1, T]."""
  rows = jnp.arange(len(tile.rows)) < tile.height
  columns = jnp.arange(len(tile.columns)) < tile.width
  return rows[:, None, None] & columns[None, None]
