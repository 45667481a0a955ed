"""Relative positions and key masks as extra channels of queries and keys, which makes them plain attention.

A query carries its row and column terms, a key the one-hot code of its row and column:
[scale*q, rel_h, rel_w] . [k, onehot(row), onehot(column)] is the biased logit exactly, so that no [N, N] bias is built.
A mask is one channel more: 1 in every query; 0 in a key that is seen, a large negative number in one that is not.
"""

import jax
import jax.numpy as jnp
import numpy as np

HIDDEN = -1e30  # logit of what lies behind the last key; finite, since inf - inf is not a number


def extra_channels(
  q: jax.Array,
  rel_h: jax.Array | None,
  rel_w: jax.Array | None,
  grid: tuple[int, int],
  prefix: int,
  key_mask: jax.Array | None,
) -> tuple[jax.Array | None, jax.Array | None]:
  """Channels to append to scaled queries and to keys, in q's type; (None, None) if there are none.

  Args:
    q: [B, H, N, D], for its shape and type.
    others: as of `ditsam_jax.ops.attention.attention`.

  Returns:
    Those of queries [B, H, N, R] and those of keys [B or 1, 1, N, R].
  """
  ours, theirs = [], []
  if rel_h is not None:
    terms = jnp.concatenate([rel_h, rel_w], -1).astype(q.dtype)
    ours.append(jnp.pad(terms, ((0, 0), (0, 0), (prefix, 0), (0, 0))))
    theirs.append(jnp.asarray(_codes(grid, prefix), q.dtype)[None, None])
  if key_mask is not None:
    ours.append(jnp.ones((*q.shape[:3], 1), q.dtype))
    theirs.append(jnp.where(key_mask, 0, unseen(q.dtype)).astype(q.dtype)[:, None, :, None])
  if not ours:
    return None, None
  batch = max(array.shape[0] for array in theirs)
  theirs = [jnp.broadcast_to(array, (batch, *array.shape[1:])) for array in theirs]
  return jnp.concatenate(ours, -1), jnp.concatenate(theirs, -1)


def appended(
  q: jax.Array, k: jax.Array, queries: jax.Array | None, keys: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
  """Scaled queries and keys with their extra channels: their product is the logits."""
  q = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
  if queries is None:
    return q, k
  return jnp.concatenate([q, queries], -1), jnp.concatenate(
    [k, jnp.broadcast_to(keys, (*k.shape[:3], keys.shape[-1]))], -1
  )


def or_zeros(queries: jax.Array | None, keys: jax.Array | None, q: jax.Array) -> tuple[jax.Array, jax.Array]:
  """`extra_channels`, or one of zeros, for kernels that always add their product."""
  if queries is not None:
    return queries, keys
  return jnp.zeros((*q.shape[:3], 1), q.dtype), jnp.zeros((1, 1, q.shape[2], 1), q.dtype)


def unseen(dtype) -> float:
  """A logit that no other comes near and that stays finite when one is added to it."""
  return max(HIDDEN, float(jnp.finfo(dtype).min) / 2)


def _codes(grid: tuple[int, int], prefix: int) -> np.ndarray:
  """One-hot row and column of every token, f32 [prefix + h*w, h + w]; zeros for the prefix."""
  h, w = grid
  codes = np.zeros((prefix + h * w, h + w), np.float32)
  tokens = np.arange(h * w)
  codes[prefix + tokens, tokens // w] = 1
  codes[prefix + tokens, h + tokens % w] = 1
  return codes
