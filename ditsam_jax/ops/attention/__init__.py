"""Attention with decomposed relative positions and a text prefix, the op of every encoder block.

The sequence is [prefix text slots, image tokens in row-major order]. Relative positions (SAM, after MViTv2) add a row
term and a column term, which depend on the unscaled query, to the image-to-image logits. `reference` defines the
result, the other modules implement it, and `choice` selects one.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ditsam_jax.ops.attention import choice
from ditsam_jax.ops.attention.channels import ATTENTION
from ditsam_jax.ops.attention.choice import IMPLEMENTATIONS
from ditsam_jax.ops.attention.cudnn import is_kept
from ditsam_jax.ops.attention.reference import attention_weights

__all__ = ['ATTENTION', 'IMPLEMENTATIONS', 'attention', 'attention_weights', 'is_kept', 'relative_terms']


def relative_terms(
  q: jax.Array, table_h: jax.Array, table_w: jax.Array, grid: tuple[int, int], prefix: int
) -> tuple[jax.Array, jax.Array]:
  """Computes the relative-position terms of each image query for every key row and key column.

  Args:
    q: unscaled queries [B, H, prefix + h*w, D].
    table_h: [2h-1, D], one vector per row offset (query row - key row + h - 1).
    table_w: [2w-1, D], likewise for columns.
    grid: (h, w).
    prefix: number of text slots before the image tokens; they have no position.

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
    q, k, v: [B, H, N, D] with N = prefix + h*w; q is unscaled (1/sqrt(D) is applied here).
    rel_h: [B, H, h*w, h], see `relative_terms`.
    rel_w: [B, H, h*w, w], see `relative_terms`.
    grid: (h, w) of the image tokens.
    prefix: number of text slots before the image tokens.
    implementation: one of IMPLEMENTATIONS; 'auto' selects the fastest for the platform the program is compiled for.

  Returns:
    [B, H, N, D].

  Raises:
    ValueError: the shapes do not match, or the implementation is unknown or does not support the input.
  """
  _check(q, k, v, rel_h, rel_w, grid, prefix)
  return choice.compute(q, k, v, rel_h, rel_w, grid=grid, prefix=prefix, implementation=implementation)


def _offsets(size: int) -> np.ndarray:
  """Table indices [size, size] for (query, key): query - key + size - 1."""
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
