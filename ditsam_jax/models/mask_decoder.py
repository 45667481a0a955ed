"""SAM's mask decoder: two-way transformer, upscaling, hypernetworks."""

import jax
import jax.numpy as jnp
from flax import nnx

from ditsam_jax.models import layers
from ditsam_jax.models.config import MaskDecoderConfig

MASK_TOKENS = 4  # one for a single mask, three for ambiguous prompts
TRANSFORMER_EPSILON = 1e-5  # nn.LayerNorm's default, unlike the rest of SAM
UPSCALING_EPSILON = 1e-6


class Attention(nnx.Module):
  """Multi-head attention with separate projections; `downsample` divides the inner width."""

  def __init__(self, width: int, heads: int, downsample: int = 1, *, rngs: nnx.Rngs):
    self.heads = heads
    inner = width // downsample
    self.q_proj, self.k_proj, self.v_proj = (layers.Linear(width, inner, rngs=rngs) for _ in range(3))
    self.out_proj = layers.Linear(inner, width, rngs=rngs)

  def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """q [B, N, C]; k, v [B, M, C]; bias of the logits [B, 1, 1, M] -> [B, N, C]. q, or k and v, may have B = 1."""
    q, k, v = (layers.split_heads(x, self.heads) for x in (self.q_proj(q), self.k_proj(k), self.v_proj(v)))
    return self.out_proj(layers.merge_heads(layers.dot_product_attention(q, k, v, bias)))


class TwoWayBlock(nnx.Module):
  """Tokens attend to themselves and the image, then the image attends to the tokens."""

  def __init__(self, config: MaskDecoderConfig, first: bool, *, rngs: nnx.Rngs):
    width, heads = config.width, config.heads
    self.first = first
    self.self_attn = Attention(width, heads, rngs=rngs)
    self.norm1 = layers.LayerNorm(width, TRANSFORMER_EPSILON)
    self.cross_attn_token_to_image = Attention(width, heads, 2, rngs=rngs)
    self.norm2 = layers.LayerNorm(width, TRANSFORMER_EPSILON)
    self.mlp = layers.MlpBlock(width, config.mlp_width, jax.nn.relu, rngs=rngs)
    self.norm3 = layers.LayerNorm(width, TRANSFORMER_EPSILON)
    self.cross_attn_image_to_token = Attention(width, heads, 2, rngs=rngs)
    self.norm4 = layers.LayerNorm(width, TRANSFORMER_EPSILON)

  def __call__(
    self,
    tokens: jax.Array,
    image: jax.Array,
    token_pe: jax.Array,
    image_pe: jax.Array,
    token_bias: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """tokens, token_pe [B, M, C]; image, image_pe [B or 1, h*w, C]; token_bias [B, 1, 1, M], for tokens as keys."""
    if self.first:  # the first block has no positions and no residual connection here
      tokens = self.self_attn(tokens, tokens, tokens, token_bias)
    else:
      q = tokens + token_pe
      tokens = tokens + self.self_attn(q, q, tokens, token_bias)
    tokens = self.norm1(tokens)
    key = image + image_pe
    tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + token_pe, key, image))
    tokens = self.norm3(tokens + self.mlp(tokens))
    image = self.norm4(image + self.cross_attn_image_to_token(key, tokens + token_pe, tokens, token_bias))
    return tokens, image


class TwoWayTransformer(nnx.Module):
  """Two-way blocks and a final attention of the tokens over the image."""

  def __init__(self, config: MaskDecoderConfig, *, rngs: nnx.Rngs):
    self.layers = nnx.List(TwoWayBlock(config, i == 0, rngs=rngs) for i in range(config.depth))
    self.final_attn_token_to_image = Attention(config.width, config.heads, 2, rngs=rngs)
    self.norm_final_attn = layers.LayerNorm(config.width, TRANSFORMER_EPSILON)

  def __call__(
    self, image: jax.Array, image_pe: jax.Array, tokens: jax.Array, token_bias: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array]:
    token_pe = tokens
    for layer in self.layers:
      tokens, image = layer(tokens, image, token_pe, image_pe, token_bias)
    tokens = tokens + self.final_attn_token_to_image(tokens + token_pe, image + image_pe, image)
    return self.norm_final_attn(tokens), image


class MaskDecoder(nnx.Module):
  """Decodes an image embedding and prompts into masks and their predicted IoU."""

  def __init__(self, config: MaskDecoderConfig, *, rngs: nnx.Rngs):
    width = config.width
    initial = nnx.initializers.normal(1.0)  # as in nn.Embedding
    self.transformer = TwoWayTransformer(config, rngs=rngs)
    self.iou_token = nnx.Param(initial(rngs.params(), (1, width)))
    self.mask_tokens = nnx.Param(initial(rngs.params(), (MASK_TOKENS, width)))
    self.upscale1 = layers.UpConv2(width, width // 4, rngs=rngs)
    self.upscale_norm = layers.LayerNorm(width // 4, UPSCALING_EPSILON)
    self.upscale2 = layers.UpConv2(width // 4, width // 8, rngs=rngs)
    self.output_hypernetworks_mlps = nnx.List(
      layers.Mlp(width, width, width // 8, 3, rngs=rngs) for _ in range(MASK_TOKENS)
    )
    self.iou_prediction_head = layers.Mlp(width, config.iou_hidden, MASK_TOKENS, 3, rngs=rngs)

  def __call__(
    self,
    image: jax.Array,
    image_pe: jax.Array,
    sparse: jax.Array,
    dense: jax.Array,
    multimask: bool | None = False,
    sparse_mask: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """Decodes prompts into masks.

    Args:
      image: image embedding [B, h, w, C], or [1, h, w, C] for all prompts. With one image, everything that does not
        depend on the prompt, such as the first block's image keys and values, is computed once.
      image_pe: its positional encoding [h, w, C].
      sparse: prompt tokens [B, P, C], P may be 0.
      dense: [B, h, w, C], or [1, h, w, C] for all prompts.
      multimask: three masks for an ambiguous prompt instead of the single one; None for all four, the single one first.
      sparse_mask: bool [B, P], False at padding tokens, which are masked; None if all count.

    Returns:
      Low-resolution logits [B, M, 4h, 4w] and predicted IoU [B, M]; M is 1, 3 or 4.
    """
    _, h, w, width = image.shape
    batch = sparse.shape[0]
    output_tokens = jnp.concatenate([self.iou_token[...], self.mask_tokens[...]])
    tokens = jnp.concatenate([jnp.broadcast_to(output_tokens, (batch, *output_tokens.shape)), sparse], axis=1)
    image = image + dense
    image = image.reshape(image.shape[0], h * w, width)
    bias = None if sparse_mask is None else _bias(sparse_mask, tokens.dtype)
    tokens, image = self.transformer(image, image_pe.reshape(1, h * w, width), tokens, bias)
    wanted = slice(1 if multimask else 0, 1 if multimask is False else MASK_TOKENS)
    hyper = jnp.stack(
      [self.output_hypernetworks_mlps[i](tokens[:, 1 + i]) for i in range(MASK_TOKENS)[wanted]], axis=1
    )  # [B, M, C/8]
    iou = self.iou_prediction_head(tokens[:, 0])[:, wanted]
    return self._masks(image, hyper, (h, w)), iou

  def _masks(self, image: jax.Array, hyper: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Upscales tokens [B, h*w, C] fourfold and multiplies them with hyper [B, M, C/8]: [B, M, 4h, 4w]."""
    x = layers.gelu(self.upscale_norm(self.upscale1(image)))  # [B, h*w, 2, 2, C/4]
    x = layers.gelu(self.upscale2(x))  # [B, h*w, 2, 2, 2, 2, C/8]
    batch, count = hyper.shape[:2]
    masks = hyper @ x.reshape(batch, -1, x.shape[-1]).swapaxes(1, 2)
    masks = masks.reshape(batch, count, *grid, 2, 2, 2, 2)  # h, w, then (row, column) of each upscaling
    return masks.transpose(0, 1, 2, 4, 6, 3, 5, 7).reshape(batch, count, 4 * grid[0], 4 * grid[1])


def _bias(sparse_mask: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """Converts a mask of prompt tokens [B, P] to a bias of attention logits [B, 1, 1, 1 + MASK_TOKENS + P]."""
  mask = jnp.pad(sparse_mask, ((0, 0), (1 + MASK_TOKENS, 0)), constant_values=True)  # output tokens are never masked
  return jnp.where(mask[:, None, None, :], 0.0, jnp.finfo(dtype).min).astype(dtype)
