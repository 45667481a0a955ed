"""SAM's prompt encoder: points, boxes and masks; DIT's text tokens join the sparse prompts."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ditsam_jax.models import layers
from ditsam_jax.models.config import MaskDecoderConfig

EPSILON = 1e-6
PADDING, NEGATIVE, POSITIVE, TOP_LEFT, BOTTOM_RIGHT = -1, 0, 1, 2, 3  # SAM's point labels
ABSENT = -2  # label of masked tokens; SAM's PADDING, in contrast, is an ordinary token


class Buffer(nnx.Variable):
  """A constant that is stored with the weights but not trained."""


class RandomFourier(nnx.Module):
  """Positional encoding by random spatial frequencies: coordinates on 0..1 [..., 2] (x, y) -> [..., C]."""

  def __init__(self, width: int, *, rngs: nnx.Rngs):
    self.gaussian_matrix = Buffer(jax.random.normal(rngs.params(), (2, width // 2)))

  def __call__(self, coordinates: jax.Array) -> jax.Array:
    angles = 2 * np.pi * ((2 * coordinates - 1) @ self.gaussian_matrix[...])
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)

  def grid(self, h: int, w: int) -> jax.Array:
    """Encodes the cell centres of an h x w grid: [h, w, C]."""
    y, x = np.meshgrid((np.arange(h) + 0.5) / h, (np.arange(w) + 0.5) / w, indexing='ij')
    return self(jnp.asarray(np.stack([x, y], -1), jnp.float32))


class MaskDownscaling(nnx.Module):
  """Mask prompt [B, 4h, 4w] -> dense embedding [B, h, w, C]."""

  def __init__(self, width: int, channels: int, *, rngs: nnx.Rngs):
    self.conv1 = layers.PatchConv(2, 1, channels // 4, rngs=rngs)
    self.norm1 = layers.LayerNorm(channels // 4, EPSILON)
    self.conv2 = layers.PatchConv(2, channels // 4, channels, rngs=rngs)
    self.norm2 = layers.LayerNorm(channels, EPSILON)
    self.conv3 = layers.Linear(channels, width, rngs=rngs)  # 1 x 1

  def __call__(self, masks: jax.Array) -> jax.Array:
    x = layers.gelu(self.norm1(self.conv1(masks[..., None])))
    return self.conv3(layers.gelu(self.norm2(self.conv2(x))))


class PromptEncoder(nnx.Module):
  """Encodes prompts as sparse tokens and a dense embedding."""

  def __init__(self, config: MaskDecoderConfig, *, rngs: nnx.Rngs):
    width = config.width
    self.pe_layer = RandomFourier(width, rngs=rngs)
    initial = nnx.initializers.normal(1.0)  # as in nn.Embedding
    # Rows: negative point, positive point, box top left, box bottom right (SAM's labels 0 to 3).
    self.point_embeddings = nnx.Param(initial(rngs.params(), (4, width)))
    self.not_a_point_embed = nnx.Param(initial(rngs.params(), (1, width)))
    self.no_mask_embed = nnx.Param(initial(rngs.params(), (1, width)))
    self.mask_downscaling = MaskDownscaling(width, config.mask_channels, rngs=rngs)

  def embed_points(self, points: jax.Array, labels: jax.Array, image_size: tuple[int, int]) -> jax.Array:
    """Encodes points as tokens.

    Args:
      points: f32 [B, P, 2], (x, y) in pixels of the model's input.
      labels: int [B, P]: -1 padding, 0 negative, 1 positive, 2 and 3 the corners of a box.
      image_size: (height, width) of the model's input.

    Returns:
      [B, P, C].
    """
    scale = jnp.asarray([image_size[1], image_size[0]], jnp.float32)
    encoded = self.pe_layer((points + 0.5) / scale) + self.point_embeddings[...][jnp.clip(labels, 0, 3)]
    return jnp.where(labels[..., None] >= 0, encoded, self.not_a_point_embed[...])

  def embed_boxes(self, boxes: jax.Array, image_size: tuple[int, int]) -> jax.Array:
    """Encodes boxes, f32 [B, 4] (x0, y0, x1, y1) in pixels, as two corner tokens each, [B, 2, C]."""
    corners = boxes.reshape(-1, 2, 2)
    labels = jnp.broadcast_to(jnp.asarray([2, 3]), corners.shape[:2])
    return self.embed_points(corners, labels, image_size)

  def sparse(
    self, points: jax.Array | None, labels: jax.Array | None, boxes: jax.Array | None, image_size: tuple[int, int]
  ) -> list[jax.Array]:
    """Encodes points and boxes as a list of sparse tokens; points without a box get SAM's padding point."""
    tokens = []
    if points is not None:
      assert labels is not None  # see DitSam._check
      if boxes is None:
        points = jnp.pad(points, ((0, 0), (0, 1), (0, 0)))
        labels = jnp.pad(labels, ((0, 0), (0, 1)), constant_values=-1)
      tokens.append(self.embed_points(points, labels, image_size))
    if boxes is not None:
      tokens.append(self.embed_boxes(boxes, image_size))
    return tokens

  def dense(
    self, masks: jax.Array | None, batch: int, grid: tuple[int, int], has_mask: jax.Array | None = None
  ) -> jax.Array:
    """Encodes mask logits [B, 4h, 4w], or the absence of a mask, as a dense embedding [B, h, w, C].

    With `has_mask`, bool [B], both are computed and each row takes one.
    """
    if masks is None:
      width = self.no_mask_embed.shape[-1]
      return jnp.broadcast_to(self.no_mask_embed[...], (batch, *grid, width))
    dense = self.mask_downscaling(masks)
    return dense if has_mask is None else jnp.where(has_mask[:, None, None, None], dense, self.no_mask_embed[...])
