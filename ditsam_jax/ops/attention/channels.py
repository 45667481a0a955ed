"""Relative positions as extra channels of queries and keys, which makes them plain attention.

A query carries its row and column terms, a key the one-hot code of its row and column:
[scale*q, rel_h, rel_w] . [k, onehot(row), onehot(column)] is the biased logit exactly, so that no [N, N] bias is built.
"""

import jax
import jax.numpy as jnp
import numpy as np

HIDDEN = -1e30  # logit of what lies behind the last key; finite, since inf - inf is not a number


def extra_channels(
  dtype, rel_h: jax.Array, rel_w: jax.Array, grid: tuple[int, int], prefix: int
) -> tuple[jax.Array, jax.Array]:
  """Channels to append to scaled queries, [B, H, N, R], and to keys, [1, 1, N, R], in a type; R is rows plus columns.

  Other arguments as of `ditsam_jax.ops.attention.attention`.
  """
  terms = jnp.concatenate([rel_h, rel_w], -1).astype(dtype)
  queries = jnp.pad(terms, ((0, 0), (0, 0), (prefix, 0), (0, 0)))
  return queries, jnp.asarray(_codes(grid, prefix), dtype)[None, None]


def appended(q: jax.Array, k: jax.Array, queries: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Scaled queries and keys with their extra channels: their product is the logits."""
  q = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
  keys = jnp.broadcast_to(keys, (*k.shape[:3], keys.shape[-1]))
  return jnp.concatenate([q, queries], -1), jnp.concatenate([k, keys], -1)


def _codes(grid: tuple[int, int], prefix: int) -> np.ndarray:
  """One-hot row and column of every token, f32 [prefix + h*w, h + w]; zeros for the prefix."""
  h, w = grid
  codes = np.zeros((prefix + h * w, h + w), np.float32)
  tokens = np.arange(h * w)
  codes[prefix + tokens, tokens // w] = 1
  codes[prefix + tokens, h + tokens % w] = 1
  return codes
