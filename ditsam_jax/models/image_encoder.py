"""SAM's ViT (arXiv 2304.02643), shared by all fusions."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from ditsam_jax.models import layers
from ditsam_jax.models.config import DitSamConfig, ImageEncoderConfig
from ditsam_jax.models.execution import ATTENDED, QKV, Execution
from ditsam_jax.models.instruction import make_instruction
from ditsam_jax.models.weights import module_at_use
from ditsam_jax.ops.attention import attention, attention_weights, relative_terms
from ditsam_jax.ops.resize import resize_grid, resize_rows
from ditsam_jax.parallel.activations import BATCH, TENSOR, axis_size, shard, shard_rows

EPSILON = 1e-6

BLOCKS = 'image_encoder.blocks'


class Attention(nnx.Module):
  """Self-attention over [text slots, image tokens] with decomposed relative positions."""

  def __init__(self, config: ImageEncoderConfig, table_size: int, *, rngs: nnx.Rngs):
    self.heads = config.heads
    head_width = config.width // config.heads
    self.qkv = layers.Linear(config.width, 3 * config.width, rngs=rngs)
    self.proj = layers.Linear(config.width, config.width, rngs=rngs)
    self.rel_pos_h = nnx.Param(jnp.zeros((2 * table_size - 1, head_width)))
    self.rel_pos_w = nnx.Param(jnp.zeros((2 * table_size - 1, head_width)))

  def __call__(self, x: jax.Array, grid: tuple[int, int], execution: Execution = Execution()) -> jax.Array:
    """x: [B, prefix + h*w, C] -> the same shape."""
    return self.proj(self._attend(self._heads(x, execution), grid, execution), execution.tiled)

  def weights(self, x: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """The softmax weights of each token over all tokens, by the definition in ops/attention: f32 [B, H, N, N].

    x: [B, N = prefix + h*w, C].
    """
    q, k, _ = self._heads(x)
    return attention_weights(q, k, *self._relative_terms(q, grid), grid, x.shape[1] - grid[0] * grid[1])

  def in_windows(
    self, slots: jax.Array, windows: jax.Array, side: int, execution: Execution = Execution()
  ) -> tuple[jax.Array, jax.Array]:
    """Attention within windows. Each window is prefixed with all text slots, whose outputs are averaged over windows.

    Args:
      slots: [B, T, C], T may be 0.
      windows: [B, W, side*side, C].
      side: side of a window, in tokens.
      execution: how it runs.

    Returns:
      New slots and windows, in the same shapes.
    """
    (batch, count, tokens, width), prefix = windows.shape, slots.shape[1]
    qkv = self._heads(windows.reshape(-1, tokens, width), execution)
    if prefix:
      of_slots = (jnp.repeat(x, count, axis=0) for x in self._heads(slots, execution))
      qkv = tuple(jnp.concatenate(pair, axis=2) for pair in zip(of_slots, qkv))
    out = self._attend(qkv, (side, side), execution).reshape(batch, count, prefix + tokens, width)
    # The projection is linear, so it can be applied after averaging.
    out = jnp.concatenate([out[:, :, :prefix].mean(1), out[:, :, prefix:].reshape(batch, -1, width)], axis=1)
    out = self.proj(out, execution.tiled)
    return out[:, :prefix], out[:, prefix:].reshape(windows.shape)

  def _attend(self, qkv: tuple[jax.Array, ...], grid: tuple[int, int], execution: Execution) -> jax.Array:
    """Three [B, H, prefix + h*w, D] -> [B, prefix + h*w, C], before the projection."""
    q, k, v = qkv
    prefix = q.shape[2] - grid[0] * grid[1]
    rel_h, rel_w = self._relative_terms(q, grid)
    out = attention(q, k, v, rel_h, rel_w, grid=grid, prefix=prefix, implementation=execution.attention)
    return layers.merge_heads(out)

  def _relative_terms(self, q: jax.Array, grid: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """The relative-position terms of queries [B, H, prefix + h*w, D], with the tables resized to the grid."""
    table_h = resize_rows(self.rel_pos_h[...], 2 * grid[0] - 1)
    table_w = resize_rows(self.rel_pos_w[...], 2 * grid[1] - 1)
    return relative_terms(q, table_h, table_w, grid, q.shape[2] - grid[0] * grid[1])

  def _heads(self, x: jax.Array, execution: Execution = Execution()) -> tuple[jax.Array, ...]:
    """x [B, N, C] -> queries, keys and values, each [B, H, N, D]."""
    batch, length, width = x.shape
    kernel, bias, by_tensor = self.qkv.kernel, self.qkv.bias, axis_size(TENSOR) > 1
    assert bias is not None  # created with a bias
    # Columns are stored as [3, H, D].
    if execution.tiled:
      weights = kernel[...].reshape(width, 3, self.heads, -1), bias[...].reshape(3, self.heads, -1)
      if by_tensor:
        weights = shard(weights[0], None, None, TENSOR, None), shard(weights[1], None, TENSOR, None)
      qkv = layers.to_heads(x, *weights)
      if by_tensor:
        qkv = tuple(shard(array, BATCH, TENSOR, None, None) for array in qkv)
      return tuple(checkpoint_name(array, QKV).swapaxes(-1, -2) for array in qkv)
    if not by_tensor:
      qkv = checkpoint_name(self.qkv(x), QKV).reshape(batch, length, 3, self.heads, -1)
      return tuple(qkv.transpose(2, 0, 3, 1, 4))

    # Ordering columns by head first makes a contiguous shard contain whole heads.
    def by_head(weight):
      weight = weight.reshape(*weight.shape[:-1], 3, self.heads, -1).swapaxes(-3, -2)
      return shard(weight, *[None] * (weight.ndim - 3), TENSOR, None, None).reshape(*weight.shape[:-3], -1)

    qkv = x.reshape(-1, width) @ by_head(kernel[...]) + by_head(bias[...])
    qkv = shard(qkv.reshape(batch, length, self.heads, 3, -1), BATCH, None, TENSOR, None, None)
    return tuple(checkpoint_name(qkv, QKV).transpose(3, 0, 2, 1, 4))


class Block(nnx.Module):
  """Pre-norm transformer block. With `window` > 0, attention is limited to windows of the grid, each with all slots."""

  def __init__(self, config: ImageEncoderConfig, index: int, *, rngs: nnx.Rngs):
    self.window = config.window(index)
    self.norm1 = layers.LayerNorm(config.width, EPSILON)
    table_size = config.pretrain_grid if index in config.global_blocks else config.pretrain_window
    self.attn = Attention(config, table_size, rngs=rngs)
    self.norm2 = layers.LayerNorm(config.width, EPSILON)
    self.mlp = layers.MlpBlock(config.width, config.mlp_ratio * config.width, layers.gelu, rngs=rngs)

  def __call__(self, x: jax.Array, grid: tuple[int, int], execution: Execution = Execution()) -> jax.Array:
    """x: [B, prefix + h*w, C] -> the same shape."""
    normed = self.norm1(x)
    if self.window:
      x = x + self._windowed(normed, grid, execution)
    else:
      x = x + self.attn(normed, grid, execution)
    x = checkpoint_name(shard_rows(x), ATTENDED)
    return shard_rows(x + self.mlp(self.norm2(x), execution.tiled))

  def _windowed(self, x: jax.Array, grid: tuple[int, int], execution: Execution) -> jax.Array:
    """Attention within windows. The grid is zero-padded to whole windows *after* the norm, as in Meta's SAM."""
    (h, w), side = grid, self.window
    batch, length, width = x.shape
    rows, columns = -(-h // side), -(-w // side)
    slots, x = x[:, : length - h * w], x[:, length - h * w :]
    x = jnp.pad(x.reshape(batch, h, w, width), ((0, 0), (0, rows * side - h), (0, columns * side - w), (0, 0)))
    x = x.reshape(batch, rows, side, columns, side, width).swapaxes(2, 3).reshape(batch, -1, side * side, width)
    slots, x = self.attn.in_windows(slots, x, side, execution)
    x = x.reshape(batch, rows, columns, side, side, width).swapaxes(2, 3)
    x = x.reshape(batch, rows * side, columns * side, width)[:, :h, :w].reshape(batch, h * w, width)
    return jnp.concatenate([slots, x], axis=1)


class Neck(nnx.Module):
  """Two convolutions without bias, each followed by a norm: [B, h, w, C] -> [B, h, w, out]."""

  def __init__(self, width: int, out: int, *, rngs: nnx.Rngs):
    self.conv1 = layers.Linear(width, out, use_bias=False, rngs=rngs)  # 1 x 1
    self.norm1 = layers.LayerNorm(out, EPSILON)
    self.conv2 = nnx.Conv(out, out, (3, 3), padding=1, use_bias=False, rngs=rngs)
    self.norm2 = layers.LayerNorm(out, EPSILON)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.norm2(self.conv2(self.norm1(self.conv1(x))))


class ImageEncoder(nnx.Module):
  """Encodes an image, and text if the fusion uses it, into an image embedding."""

  def __init__(self, config: DitSamConfig, *, rngs: nnx.Rngs):
    encoder = config.image_encoder
    self.patch_embed = layers.PatchConv(encoder.patch_size, 3, encoder.width, rngs=rngs)
    shape = (encoder.pretrain_grid, encoder.pretrain_grid, encoder.width)
    self.pos_embed = nnx.Param(nnx.initializers.truncated_normal(0.02)(rngs.params(), shape))
    self.blocks = nnx.List(Block(encoder, i, rngs=rngs) for i in range(encoder.depth))
    self.neck = Neck(encoder.width, config.mask_decoder.width, rngs=rngs)
    self.instruction = nnx.data(make_instruction(config.fusion, config.fusion_sizes, rngs=rngs))

  def __call__(
    self,
    images: jax.Array,
    text: jax.Array | None = None,
    *,
    rngs: nnx.Rngs | None = None,
    execution: Execution = Execution(),
  ) -> jax.Array:
    """Computes the image embedding.

    Args:
      images: normalised f32 [B, H, W, 3], sides multiples of the patch size.
      text: text features [B, T, Ct]; ignored by the text baseline; None for images without text.
      rngs: a 'dropout' stream, see TextEncoder.
      execution: how the blocks run.

    Returns:
      [B, H/patch, W/patch, out], after the neck.
    """
    x, (h, w) = self.image_tokens(images)
    instruction = None if text is None else self.instruction
    features = None if instruction is None or text is None else instruction.features(text)
    if execution.scan and self._can_scan(instruction):
      slots = (
        None
        if instruction is None or features is None
        else jnp.stack([instruction.slots(i, features, None, rngs) for i in range(len(self.blocks))])
      )
      x = self.scan_blocks(x, (h, w), slots, execution)
    else:
      slots = None
      for i, block in enumerate(self.blocks):
        slots = None if instruction is None or features is None else instruction.slots(i, features, slots, rngs)
        run = functools.partial(_run_block, block, i, (h, w), execution)
        slots, x = execution.rematerialised(run)(slots, x)
    return self.neck(x.reshape(x.shape[0], h, w, -1))  # not len(): exported programs have batches of any size

  def image_tokens(self, images: jax.Array) -> tuple[jax.Array, tuple[int, int]]:
    """Returns the tokens of images [B, H, W, 3] before the first block, [B, h*w, C], and the grid (h, w)."""
    x = self.patch_embed(images.astype(self.pos_embed.dtype))
    batch, h, w, width = x.shape
    x = x + resize_grid(self.pos_embed[...], (h, w))
    return shard_rows(x.reshape(batch, h * w, width)), (h, w)

  def _can_scan(self, instruction) -> bool:
    """Whether all blocks have the same window, and no slots depend on the previous block."""
    return len({block.window for block in self.blocks}) == 1 and (instruction is None or not instruction.travels)

  def scan_blocks(
    self, x: jax.Array, grid: tuple[int, int], slots: jax.Array | None, execution: Execution
  ) -> jax.Array:
    """Scans over blocks that are all alike: x [B, h*w, C] -> the same shape.

    `slots` are the text tokens of all blocks, [depth, B, T, C], or None.
    """
    graph, _ = nnx.split(self.blocks[0])
    weights = stacked_weights(self.blocks, grid)

    def body(x, layer):
      weights, slots = layer
      return _run_block(nnx.merge(graph, weights), 0, grid, execution, slots, x)[1], None

    return jax.lax.scan(execution.rematerialised(body, scanned=True), x, (weights, slots))[0]


def _run_block(
  block: Block, index: int, grid: tuple[int, int], execution: Execution, slots: jax.Array | None, x: jax.Array
) -> tuple[jax.Array | None, jax.Array]:
  """Runs a block on [text slots, image tokens]; returns both separately."""
  block = module_at_use(block, f'{BLOCKS}.{index}')
  if slots is None:
    return None, block(x, grid, execution)
  x = block(jnp.concatenate([slots, x], axis=1), grid, execution)
  return x[:, : slots.shape[1]], x[:, slots.shape[1] :]


def stacked_weights(blocks: nnx.List, grid: tuple[int, int]) -> nnx.State:
  """Stacks the weights of all blocks along a new first axis."""
  return jax.tree.map(lambda *arrays: jnp.stack(arrays), *(_weights(block, grid) for block in blocks))


def _weights(block: Block, grid: tuple[int, int]) -> nnx.State:
  """A block's weights, with relative-position tables resized to the grid or window, so all blocks' shapes agree."""
  _, weights = nnx.split(block)
  tables: Any = weights['attn']
  for name, size in zip(('rel_pos_h', 'rel_pos_w'), (block.window,) * 2 if block.window else grid):
    table = tables[name]
    tables[name] = table.replace(resize_rows(table[...], 2 * size - 1))
  return weights
