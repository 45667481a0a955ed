"""Attention with decomposed relative positions and a text prefix: the one op that every encoder block calls.

The sequence is [prefix text slots, image tokens in row-major order]. Relative positions (SAM, after MViTv2) add to the
image-to-image logits a row term and a column term that depend on the unscaled query.
"""

import jax
import jax.numpy as jnp
import numpy as np

IMPLEMENTATIONS = ('auto', 'reference', 'xla')


def relative_terms(q: jax.Array, table_h: jax.Array, table_w: jax.Array, grid: tuple[int, int],
                   prefix: int) -> tuple[jax.Array, jax.Array]:
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


def attention(q: jax.Array, k: jax.Array, v: jax.Array, rel_h: jax.Array | None = None,
              rel_w: jax.Array | None = None, *, grid: tuple[int, int], prefix: int = 0,
              implementation: str = 'auto') -> jax.Array:
  """Softmax attention with relative-position terms on the image-to-image logits.

  Args:
    q, k, v: [B, H, N, D] with N = prefix + h*w; q is not scaled yet (1/sqrt(D) is applied here).
    rel_h: [B, H, h*w, h], or None for no relative positions.
    rel_w: [B, H, h*w, w].
    grid: (h, w) of the image tokens.
    prefix: number of text slots in front of the image tokens.
    implementation: one of IMPLEMENTATIONS; 'auto' takes the best for the platform.

  Returns:
    [B, H, N, D].

  Raises:
    ValueError: unknown implementation.
  """
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(f'attention implementation {implementation!r} is unknown; choose one of {IMPLEMENTATIONS}')
  if rel_h is not None and implementation != 'reference':
    return _extra_channels(q, k, v, rel_h, rel_w, grid, prefix)
  return _reference(q, k, v, rel_h, rel_w, grid, prefix)


def _offsets(size: int) -> np.ndarray:
  """Table rows [size, size] for (query, key): query - key + size - 1."""
  return np.arange(size)[:, None] - np.arange(size)[None, :] + size - 1


def _softmax_product(logits: jax.Array, v: jax.Array) -> jax.Array:
  wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  return jax.nn.softmax(wide, axis=-1).astype(v.dtype) @ v


def _reference(q, k, v, rel_h, rel_w, grid, prefix):
  """The definition: logits with an explicit [h*w, h*w] bias."""
  logits = (q * q.shape[-1] ** -0.5) @ k.swapaxes(-1, -2)
  if rel_h is not None:
    bias = rel_h[..., :, None] + rel_w[..., None, :]  # [B, H, h*w, h, w]
    bias = bias.reshape(*rel_h.shape[:3], grid[0] * grid[1])
    logits = logits + jnp.pad(bias, ((0, 0), (0, 0), (prefix, 0), (prefix, 0)))
  return _softmax_product(logits, v)


def _extra_channels(q, k, v, rel_h, rel_w, grid, prefix):
  """The same in one product: queries carry their terms as channels, keys a one-hot row and column.

  [scale*q, rel_h, rel_w] . [k, onehot(row), onehot(column)] is the biased logit exactly, and no [N, N] bias is built,
  padded or added; forward and backward are plain products.
  """
  h, w = grid
  one_hot = np.zeros((prefix + h * w, h + w), np.float32)
  tokens = np.arange(h * w)
  one_hot[prefix + tokens, tokens // w] = 1
  one_hot[prefix + tokens, h + tokens % w] = 1
  terms = jnp.pad(jnp.concatenate([rel_h, rel_w], -1), ((0, 0), (0, 0), (prefix, 0), (0, 0)))
  q = jnp.concatenate([q * q.shape[-1] ** -0.5, terms], -1)
  k = jnp.concatenate([k, jnp.broadcast_to(jnp.asarray(one_hot, k.dtype), (*k.shape[:3], h + w))], -1)
  return _softmax_product(q @ k.swapaxes(-1, -2), v)
