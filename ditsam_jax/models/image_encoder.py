"""SAM's ViT (arXiv 2304.02643), once, for every fusion."""

from flax import nnx
import jax
import jax.numpy as jnp

from ditsam_jax.models import layers
from ditsam_jax.models.config import DitSamConfig, ImageEncoderConfig
from ditsam_jax.models.instruction import make_instruction
from ditsam_jax.ops.attention import attention, relative_terms
from ditsam_jax.ops.resize import resize_grid, resize_rows

EPSILON = 1e-6


class Attention(nnx.Module):
  """Self-attention over [text slots, image tokens] with decomposed relative positions."""

  def __init__(self, config: ImageEncoderConfig, table_size: int, implementation: str, *, rngs: nnx.Rngs):
    self.heads = config.heads
    self.implementation = implementation
    head_width = config.width // config.heads
    self.qkv = layers.Linear(config.width, 3 * config.width, rngs=rngs)
    self.proj = layers.Linear(config.width, config.width, rngs=rngs)
    self.rel_pos_h = nnx.Param(jnp.zeros((2 * table_size - 1, head_width)))
    self.rel_pos_w = nnx.Param(jnp.zeros((2 * table_size - 1, head_width)))

  def __call__(self, x: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """x: [B, prefix + h*w, C] -> the same shape."""
    batch, length, width = x.shape
    prefix = length - grid[0] * grid[1]
    qkv = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads)
    q, k, v = qkv.transpose(2, 0, 3, 1, 4)  # each [B, H, N, D]
    table_h = resize_rows(self.rel_pos_h[...], 2 * grid[0] - 1)
    table_w = resize_rows(self.rel_pos_w[...], 2 * grid[1] - 1)
    rel_h, rel_w = relative_terms(q, table_h, table_w, grid, prefix)
    out = attention(q, k, v, rel_h, rel_w, grid=grid, prefix=prefix, implementation=self.implementation)
    return self.proj(layers.merge_heads(out))


class Block(nnx.Module):
  """Pre-norm transformer block; `window` > 0 attends inside windows of the image grid."""

  def __init__(self, config: ImageEncoderConfig, index: int, attention: str, *, rngs: nnx.Rngs):
    is_global = index in config.global_blocks
    self.window = 0 if is_global else config.window_size
    self.norm1 = layers.LayerNorm(config.width, EPSILON)
    table_size = config.pretrain_grid if is_global else config.pretrain_window
    self.attn = Attention(config, table_size, attention, rngs=rngs)
    self.norm2 = layers.LayerNorm(config.width, EPSILON)
    self.mlp = layers.MlpBlock(config.width, config.mlp_ratio * config.width, layers.gelu, rngs=rngs)

  def __call__(self, x: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """x: [B, prefix + h*w, C] -> the same shape."""
    normed = self.norm1(x)
    if self.window:
      x = x + self._windowed(normed, grid)
    else:
      x = x + self.attn(normed, grid)
    return x + self.mlp(self.norm2(x))

  def _windowed(self, x: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Attention inside windows; zeros pad the grid to whole windows *after* the norm, as in official SAM."""
    (h, w), size = grid, self.window
    batch, _, width = x.shape
    rows, columns = -(-h // size), -(-w // size)
    x = jnp.pad(x.reshape(batch, h, w, width), ((0, 0), (0, rows * size - h), (0, columns * size - w), (0, 0)))
    x = x.reshape(batch, rows, size, columns, size, width).swapaxes(2, 3).reshape(-1, size * size, width)
    x = self.attn(x, (size, size))
    x = x.reshape(batch, rows, columns, size, size, width).swapaxes(2, 3)
    return x.reshape(batch, rows * size, columns * size, width)[:, :h, :w].reshape(batch, h * w, width)


class Neck(nnx.Module):
  """Two convolutions without bias and their norms: [B, h, w, C] -> [B, h, w, out]."""

  def __init__(self, width: int, out: int, *, rngs: nnx.Rngs):
    self.conv1 = layers.Linear(width, out, use_bias=False, rngs=rngs)  # 1 x 1
    self.norm1 = layers.LayerNorm(out, EPSILON)
    self.conv2 = nnx.Conv(out, out, (3, 3), padding=1, use_bias=False, rngs=rngs)
    self.norm2 = layers.LayerNorm(out, EPSILON)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.norm2(self.conv2(self.norm1(self.conv1(x))))


class ImageEncoder(nnx.Module):
  """Image (and, by the fusion, text) to image embedding."""

  def __init__(self, config: DitSamConfig, *, rngs: nnx.Rngs):
    encoder = config.image_encoder
    self.patch_embed = layers.PatchConv(encoder.patch_size, 3, encoder.width, rngs=rngs)
    shape = (encoder.pretrain_grid, encoder.pretrain_grid, encoder.width)
    self.pos_embed = nnx.Param(nnx.initializers.truncated_normal(0.02)(rngs.params(), shape))
    self.blocks = nnx.List(Block(encoder, i, config.attention, rngs=rngs) for i in range(encoder.depth))
    self.neck = Neck(encoder.width, config.mask_decoder.width, rngs=rngs)
    self.instruction = nnx.data(make_instruction(config, rngs=rngs))

  def __call__(self, images: jax.Array, text: jax.Array | None = None, *,
               rngs: nnx.Rngs | None = None) -> jax.Array:
    """Image embedding.

    Args:
      images: normalised f32 [B, H, W, 3], sides multiples of the patch size.
      text: text features [B, T, Ct]; ignored by the text baseline, None for images without text.
      rngs: a 'dropout' stream, see TextEncoder.

    Returns:
      [B, H/patch, W/patch, out], after the neck.
    """
    x = self.patch_embed(images.astype(self.pos_embed.dtype))
    batch, h, w, width = x.shape
    x = x + resize_grid(self.pos_embed[...], (h, w))
    x = x.reshape(batch, h * w, width)
    if self.instruction is None or text is None:
      for block in self.blocks:
        x = block(x, (h, w))
    else:
      x = self._with_text(x, text, (h, w), rngs)
    return self.neck(x.reshape(batch, h, w, width))

  def _with_text(self, x: jax.Array, text: jax.Array, grid: tuple[int, int], rngs: nnx.Rngs | None) -> jax.Array:
    """The blocks over [text slots, image tokens]; the slots are dropped at the end."""
    features = self.instruction.features(text)
    slots = None
    for i, block in enumerate(self.blocks):
      slots = self.instruction.slots(i, features, slots, rngs)
      x = block(jnp.concatenate([slots, x], axis=1), grid)
      slots, x = x[:, : slots.shape[1]], x[:, slots.shape[1]:]
    return x
