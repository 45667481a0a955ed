"""Folds relative positions into extra channels of queries and keys, which leaves plain attention.

Queries are extended by their row and column terms, keys by the one-hot codes of their row and column:
[scale*q, rel_h, rel_w] . [k, onehot(row), onehot(column)] equals the biased logit exactly, without an [N, N] bias.
"""

import jax
import jax.numpy as jnp
import numpy as np

ATTENTION = 'attention'  # name of what a forward pass computes for the backward pass: the output and the logsumexp
HIDDEN = -1e30  # logit of masked keys; finite, because inf - inf is NaN


def extra_channels(
  dtype, rel_h: jax.Array, rel_w: jax.Array, grid: tuple[int, int], prefix: int
) -> tuple[jax.Array, jax.Array]:
  """Returns the channels to append to scaled queries, [B, H, N, R], and to keys, [1, 1, N, R], in `dtype`.

  R is the number of rows plus columns. For the arguments see `ditsam_jax.ops.attention.attention`.
  """
  terms = jnp.concatenate([rel_h, rel_w], -1).astype(dtype)
  queries = jnp.pad(terms, ((0, 0), (0, 0), (prefix, 0), (0, 0)))
  return queries, jnp.asarray(_codes(grid, prefix), dtype)[None, None]


def appended(q: jax.Array, k: jax.Array, queries: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Scales queries and appends the extra channels to queries and keys; the dot products are the logits."""
  q = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
  keys = jnp.broadcast_to(keys, (*k.shape[:3], keys.shape[-1]))
  return jnp.concatenate([q, queries], -1), jnp.concatenate([k, keys], -1)


def _codes(grid: tuple[int, int], prefix: int) -> np.ndarray:
  """One-hot codes of each token's row and column, f32 [prefix + h*w, h + w]; zeros for the prefix."""
  h, w = grid
  codes = np.zeros((prefix + h * w, h + w), np.float32)
  tokens = np.arange(h * w)
  codes[prefix + tokens, tokens // w] = 1
  codes[prefix + tokens, h + tokens % w] = 1
  return codes
