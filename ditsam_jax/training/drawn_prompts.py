"""Prompts drawn on the device from masks: first clicks and boxes, and clicks that correct a mask."""

import jax
import jax.numpy as jnp

from ditsam_jax.models.prompt_encoder import ABSENT, BOTTOM_RIGHT, NEGATIVE, PADDING, POSITIVE, TOP_LEFT


def first_prompts(
  key: jax.Array, targets: jax.Array, shares: tuple[float, float, float], jitter: float
) -> tuple[jax.Array, jax.Array]:
  """Draws a click, a box or nothing for each target. An empty target gets no box; its click is negative.

  Args:
    key: random key.
    targets: true masks, bool [N, h, w].
    shares: relative frequencies of no prompt, clicks and boxes.
    jitter: each side of a box moves by up to this share of the box's length.

  Returns:
    Points (x, y) f32 [N, 2, 2] and labels int32 [N, 2]: a click and SAM's padding, or a box's corners.
  """
  for_kind, for_click, for_box = jax.random.split(key, 3)
  kind = jax.random.choice(for_kind, 3, (len(targets),), p=jnp.asarray(shares) / sum(shares))
  clicks, labels = corrective_clicks(for_click, jnp.zeros_like(targets), targets)
  clicks = jnp.concatenate([clicks, jnp.zeros_like(clicks)], 1)
  labels = jnp.concatenate([labels, jnp.full_like(labels, PADDING)], 1)
  boxes, corners = jittered_boxes(for_box, targets, jitter)
  absent = jnp.full_like(labels, ABSENT)
  is_box, is_click = (kind == 2)[:, None], (kind == 1)[:, None]
  points = jnp.where(is_box[..., None], boxes, jnp.where(is_click[..., None], clicks, 0.0))
  return points, jnp.where(is_box, corners, jnp.where(is_click, labels, absent))


def jittered_boxes(key: jax.Array, targets: jax.Array, jitter: float) -> tuple[jax.Array, jax.Array]:
  """Draws a box around each target, bool [N, h, w]; sides move by up to `jitter` of the box's length, in the image.

  Returns:
    Corners (x, y) f32 [N, 2, 2] and SAM's labels int32 [N, 2], which are ABSENT for targets without pixels.
  """
  count, height, width = targets.shape
  columns, rows = targets.any(1), targets.any(2)
  first = jnp.stack([columns.argmax(1), rows.argmax(1)], -1)
  last = jnp.asarray([width - 1, height - 1]) - jnp.stack([columns[:, ::-1].argmax(1), rows[:, ::-1].argmax(1)], -1)
  corners = jnp.stack([first, last], 1).astype(jnp.float32)
  lengths = (last - first + 1)[:, None].astype(jnp.float32)
  moved = corners + jax.random.uniform(key, corners.shape, minval=-jitter, maxval=jitter) * lengths
  moved = jnp.clip(moved, 0, jnp.asarray([width - 1, height - 1], jnp.float32))
  labels = jnp.where(targets.any((1, 2))[:, None], jnp.asarray([TOP_LEFT, BOTTOM_RIGHT]), ABSENT)
  return moved, labels.astype(jnp.int32)


def corrective_clicks(key: jax.Array, masks: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Draws a click for each mask, uniformly among its wrong pixels, or among all pixels if none is wrong.

  Args:
    key: random key.
    masks: predicted masks, bool [N, h, w].
    targets: true masks, bool [N, h, w].

  Returns:
    Points (x, y) f32 [N, 1, 2] and labels int32 [N, 1], positive for pixels of the target.
  """
  wrong = masks != targets
  wrong |= ~wrong.any((1, 2), keepdims=True)
  rows = wrong.sum(2).cumsum(1)  # wrong pixels up to the end of each row
  total = rows[:, -1:]
  rank = jnp.floor(jax.random.uniform(key, total.shape) * total).astype(total.dtype)
  rank = jnp.minimum(rank, total - 1)
  y = (rows <= rank).sum(1, keepdims=True)  # the row of the drawn pixel
  row = jnp.take_along_axis(wrong, y[..., None], axis=1)[:, 0]  # [N, w]
  before = jnp.take_along_axis(rows, y, axis=1) - row.sum(1, keepdims=True)
  x = (row.cumsum(1) <= rank - before).sum(1, keepdims=True)
  hit = jnp.take_along_axis(jnp.take_along_axis(targets, y[..., None], axis=1)[:, 0], x, axis=1)
  return jnp.stack([x, y], -1).astype(jnp.float32), jnp.where(hit, POSITIVE, NEGATIVE).astype(jnp.int32)


def with_click(points: jax.Array, labels: jax.Array, click: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Adds a click to prompts of points [N, P, 2] and labels [N, P], which begin with the two tokens of a first prompt.

  A first prompt without points becomes a click with SAM's padding.
  """
  first = jnp.where(labels[:, :1] == ABSENT, jnp.asarray([ABSENT, PADDING]), labels[:, :2])
  labels = jnp.concatenate([first, labels[:, 2:], label], 1)
  return jnp.concatenate([points, click], 1), labels
