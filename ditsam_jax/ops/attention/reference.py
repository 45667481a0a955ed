"""The definition: logits with an explicit bias over all pairs of tokens, and their softmax, in f32 (f64 for f64)."""

import jax
import jax.numpy as jnp

EXACT = jax.lax.Precision.HIGHEST  # accelerators multiply f32 in lower precision unless told


def attention(q, k, v, rel_h, rel_w, grid, prefix):
  """Arguments as of `ditsam_jax.ops.attention.attention`; every step in f32, the result in q's type."""
  wide = jnp.promote_types(q.dtype, jnp.float32)
  logits = jnp.einsum('bhnd,bhmd->bhnm', q.astype(wide) * q.shape[-1] ** -0.5, k.astype(wide), precision=EXACT)
  bias = rel_h.astype(wide)[..., :, None] + rel_w.astype(wide)[..., None, :]  # [B, H, h*w, h, w]
  bias = bias.reshape(*rel_h.shape[:3], grid[0] * grid[1])
  logits = logits + jnp.pad(bias, ((0, 0), (0, 0), (prefix, 0), (prefix, 0)))
  weights = jax.nn.softmax(logits, axis=-1)
  return jnp.einsum('bhnm,bhmd->bhnd', weights, v.astype(wide), precision=EXACT).astype(q.dtype)
