"""The definition: softmax over logits with an explicit [N, N] bias, in f32 (f64 for f64 inputs)."""

import jax
import jax.numpy as jnp

EXACT = jax.lax.Precision.HIGHEST  # by default, accelerators multiply f32 in lower precision


def attention(q, k, v, rel_h, rel_w, grid, prefix):
  """Computes every step in f32 and returns q's type. For the arguments see `ditsam_jax.ops.attention.attention`."""
  weights = attention_weights(q, k, rel_h, rel_w, grid, prefix)
  return jnp.einsum('bhnm,bhmd->bhnd', weights, v.astype(weights.dtype), precision=EXACT).astype(q.dtype)


def attention_weights(q, k, rel_h, rel_w, grid, prefix):
  """The softmax alone: weights [B, H, N, N] of each query over all keys, in f32."""
  wide = jnp.promote_types(q.dtype, jnp.float32)
  logits = jnp.einsum('bhnd,bhmd->bhnm', q.astype(wide) * q.shape[-1] ** -0.5, k.astype(wide), precision=EXACT)
  bias = rel_h.astype(wide)[..., :, None] + rel_w.astype(wide)[..., None, :]  # [B, H, h*w, h, w]
  bias = bias.reshape(*rel_h.shape[:3], grid[0] * grid[1])
  logits = logits + jnp.pad(bias, ((0, 0), (0, 0), (prefix, 0), (prefix, 0)))
  return jax.nn.softmax(logits, axis=-1)
