"""What automatic mask generation computes on the device beside the model: masks measured, drawn and thinned out.

Masks are brought to the image's own size a tile at a time, by the matrices of `Framed.own_size_operators`, so the shapes
of these programs do not depend on the image, and no full-size logits are ever stored.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = Any  # JAX's or NumPy's, scalars too

_FAR = np.iinfo(np.int32).max


class Measures(NamedTuple):
  """Of C masks at the image's own size, int32 [C] each; the box's last row and column belong to the mask, -1 for none."""

  inner: Array  # pixels above the threshold plus the offset
  outer: Array  # above the threshold less the offset
  left: Array
  top: Array
  right: Array
  bottom: Array

  @classmethod
  def none(cls, count: int) -> 'Measures':
    """Before the first tile."""
    zero, far, before = (np.full(count, value, np.int32) for value in (0, _FAR, -1))
    return cls(zero, zero, far, far, before, before)


class Tile(NamedTuple):
  """A part of the image's own pixels: the operators' rows f32 [T, S/4], which may end in zeros, and what they are."""

  rows: Array
  columns: Array
  top: Array  # int32 [], the tile's first row, and so on
  left: Array
  height: Array  # int32 [], of the tile's part of the image
  width: Array


def tiles_of(rows: np.ndarray, columns: np.ndarray, side: int) -> list[Tile]:
  """The tiles of an image, row by row; rows f32 [h, S/4] and columns f32 [w, S/4] are its operators."""

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
  """One mask [S/4, S/4] of logits [R, M, S/4, S/4]."""
  return logits[row, mask]


@jax.jit
def measure(measures: Measures, logits: Sequence[jax.Array], tile: Tile, threshold: Array, offset: Array) -> Measures:
  """Adds a tile to the measures of C masks, each f32 [S/4, S/4]; threshold and offset f32 []."""
  values = _own_size(logits, tile)
  inside = _inside(tile)
  mask = (values > threshold) & inside
  rows, columns = mask.any(2), mask.any(0)  # [T, C] and [C, T]
  y = tile.top + jnp.arange(len(tile.rows), dtype=jnp.int32)[:, None]
  x = tile.left + jnp.arange(len(tile.columns), dtype=jnp.int32)[None]

  def count(limit: Array) -> jax.Array:
    return ((values > limit) & inside).sum((0, 2), dtype=jnp.int32)

  return Measures(
    measures.inner + count(threshold + offset),
    measures.outer + count(threshold - offset),
    jnp.minimum(measures.left, jnp.where(columns, x, _FAR).min(1)),
    jnp.minimum(measures.top, jnp.where(rows, y, _FAR).min(0)),
    jnp.maximum(measures.right, jnp.where(columns, x, -1).max(1)),
    jnp.maximum(measures.bottom, jnp.where(rows, y, -1).max(0)),
  )


@jax.jit
def judge(
  measures: Measures, stability_threshold: Array, crop: Array, image: Array, margin: Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """What is kept of C masks, by their stability and by where they end.

  A mask that ends at an edge of its crop, but not of the image, is probably cut off there. NaN, the stability of a mask
  without a pixel, is no stability at all, unless none is asked for.

  Args:
    measures: all tiles of them.
    stability_threshold: f32 []; 0 and below keeps all.
    crop: f32 [4], the crop's box in the image.
    image: f32 [4], the image's own.
    margin: f32 [], pixels that count as the edge.

  Returns:
    Kept bool [C], stability f32 [C], boxes int32 [C, 4] in pixels of the crop, zeros for an empty mask.
  """
  stability = measures.inner / measures.outer  # f32; the inner pixels are among the outer ones
  boxes = jnp.stack([measures.left, measures.top, measures.right, measures.bottom], 1)
  boxes = jnp.where(measures.right[:, None] < 0, 0, boxes)
  moved = boxes + jnp.tile(crop[:2], 2)
  at_crop, at_image = jnp.abs(moved - crop) <= margin, jnp.abs(moved - image) <= margin
  kept = (stability >= stability_threshold) | (stability_threshold <= 0)
  return kept & ~(at_crop & ~at_image).any(1), stability, boxes


@jax.jit
def draw(logits: Sequence[jax.Array], tile: Tile, threshold: Array) -> jax.Array:
  """A tile of C masks, eight pixels a byte: uint8 [T, C, T/8]."""
  return jnp.packbits(_own_size(logits, tile) > threshold, axis=2)


@jax.jit
def suppress(boxes: Array, scores: Array, threshold: Array) -> jax.Array:
  """Non-maximum suppression: from the highest score down, boxes drop those that overlap them more than the threshold.

  Args:
    boxes: f32 [N, 4], (x0, y0, x1, y1).
    scores: f32 [N], -inf at filling, which is never kept.
    threshold: IoU f32 [].

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
    dropped = overlap / (areas + areas[i] - overlap) > threshold  # NaN between two points: no overlap
    return kept & ~(dropped & (jnp.arange(count) > i) & kept[i])

  kept = jax.lax.fori_loop(0, jnp.isfinite(scores).sum(), step, jnp.isfinite(scores)[order])
  return jnp.zeros(count, bool).at[order].set(kept)


def kept_boxes(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
  """Indices int [K] of the boxes [N, 4] that `suppress` keeps, highest scores first, ties in order."""
  count = len(boxes)
  room = max(64, 1 << (count - 1).bit_length()) if count else 64
  filled = np.zeros((room, 4), np.float32)
  filled[:count] = boxes
  ranked = np.full(room, -np.inf, np.float32)
  ranked[:count] = scores
  kept = np.asarray(suppress(filled, ranked, np.float32(threshold)))[:count]
  order = np.argsort(-ranked[:count], kind='stable')
  return order[kept[order]]


def _own_size(logits: Sequence[jax.Array], tile: Tile) -> jax.Array:
  """f32 [T, C, T] (row, mask, column) of C masks [S/4, S/4]: two products of two axes each."""
  stacked = jnp.stack(logits, 1)  # [rows, C, columns]
  side, count, _ = stacked.shape
  exact = functools.partial(jnp.matmul, precision='highest')  # accelerators round products of f32 to fewer digits
  wide = exact(stacked.reshape(side * count, side), tile.columns.T)
  return exact(tile.rows, wide.reshape(side, -1)).reshape(len(tile.rows), count, -1)


def _inside(tile: Tile) -> jax.Array:
  """bool [T, 1, T]: what of the tile is image."""
  rows = jnp.arange(len(tile.rows)) < tile.height
  columns = jnp.arange(len(tile.columns)) < tile.width
  return rows[:, None, None] & columns[None, None]
