"""Attention with decomposed relative positions and a text prefix: the one op that every encoder block calls.

The sequence is [prefix text slots, image tokens in row-major order]. Relative positions (SAM, after MViTv2) add to the
image-to-image logits a row term and a column term that depend on the unscaled query. `reference` is the definition, the
other modules are ways to compute it, `choice` says which one runs.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ditsam_jax.ops.attention import choice
from ditsam_jax.ops.attention.choice import IMPLEMENTATIONS

__all__ = ['IMPLEMENTATIONS', 'attention', 'relative_terms']


def relative_terms(
  q: jax.Array, table_h: jax.Array, table_w: jax.Array, grid: tuple[int, int], prefix: int
) -> tuple[jax.Array, jax.Array]:
  """What each image query adds to the logits of every key row and every key column.

  Args:
    q: unscaled queries [B, H, prefix + h*w, D].
    table_h: [2h-1, D], one vector a row offset (query row - key row + h - 1).
    table_w: [2w-1, D], likewise for columns.
    grid: (h, w).
    prefix: number of text slots in front; they have no position.

  Returns:
    rel_h [B, H, h*w, h] and rel_w [B, H, h*w, w].
  """
  h, w = grid
  batch, heads, _, width = q.shape
  q = q[:, :, prefix:].reshape(batch, heads, h, w, width)
  rows = jnp.einsum('bnhwd,hkd->bnhwk', q, table_h[_offsets(h)])
  columns = jnp.einsum('bnhwd,wkd->bnhwk', q, table_w[_offsets(w)])
  return rows.reshape(batch, heads, h * w, h), columns.reshape(batch, heads, h * w, w)


def attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  rel_h: jax.Array,
  rel_w: jax.Array,
  *,
  grid: tuple[int, int],
  prefix: int = 0,
  implementation: str = 'auto',
) -> jax.Array:
  """Softmax attention with relative-position terms on the image-to-image logits.

  Args:
    q, k, v: [B, H, N, D] with N = prefix + h*w; q is not scaled yet (1/sqrt(D) is applied here).
    rel_h: [B, H, h*w, h] and
    rel_w: [B, H, h*w, w], see `relative_terms`.
    grid: (h, w) of the image tokens.
    prefix: number of text slots in front of the image tokens.
    implementation: one of IMPLEMENTATIONS; 'auto' takes the best for the platform the program is compiled for.

  Returns:
    [B, H, N, D].

  Raises:
    ValueError: shapes that do not go together; an unknown implementation, or one that cannot compute this.
  """
  _check(q, k, v, rel_h, rel_w, grid, prefix)
  return choice.compute(q, k, v, rel_h, rel_w, grid=grid, prefix=prefix, implementation=implementation)


def _offsets(size: int) -> np.ndarray:
  """Table rows [size, size] for (query, key): query - key + size - 1."""
  return np.arange(size)[:, None] - np.arange(size)[None, :] + size - 1


def _check(q, k, v, rel_h, rel_w, grid, prefix):
  batch, heads, _, width = q.shape
  tokens = grid[0] * grid[1]
  length = prefix + tokens
  expected = {
    'q': (q, (batch, heads, length, width)),
    'k': (k, (batch, heads, length, width)),
    'v': (v, (batch, heads, length, width)),
    'rel_h': (rel_h, (batch, heads, tokens, grid[0])),
    'rel_w': (rel_w, (batch, heads, tokens, grid[1])),
  }
  for name, (array, shape) in expected.items():
    if array.shape != shape:
      raise ValueError(
        f'attention: {name} is {array.shape}; expected {shape} for a {grid[0]} x {grid[1]} grid and a '
        f'prefix of {prefix}'
      )
