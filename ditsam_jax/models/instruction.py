"""What the text slots hold before block i: one small module a fusion (arXiv 2404.00650, section 3).

Every fusion has two methods: `features(y)` turns the text features y [B, T, Ct] into what its projections read, once an
image; `slots(i, y, previous)` gives the slots [B, T, C] that block i starts with, from these features and from the
slots after block i-1 (None at block 0).
"""

import jax
import jax.numpy as jnp
from flax import nnx

from ditsam_jax.models import layers
from ditsam_jax.models.config import DitSamConfig

CROSS_HEADS, CROSS_WIDTH = 8, 512


def _zero_linear(width: int, rngs: nnx.Rngs) -> layers.Linear:
  """Zero weights and bias: tuning starts from slots that say nothing."""
  return layers.Linear(width, width, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)


class Instruction(nnx.Module):
  """Base: the features are used as they are."""

  travels = True  # whether slots(i) reads the slots after block i-1

  def features(self, y: jax.Array) -> jax.Array:
    return y

  def slots(self, i: int, y: jax.Array, previous: jax.Array | None, rngs: nnx.Rngs | None) -> jax.Array:
    raise NotImplementedError


class LayerWise(Instruction):
  """L-DIT: every block gets its own projection of the text."""

  travels = False

  def __init__(self, config: DitSamConfig, *, rngs: nnx.Rngs):
    encoder = config.image_encoder
    self.probs = nnx.List(_zero_linear(encoder.width, rngs) for _ in range(encoder.depth))
    self.dropout = nnx.Dropout(config.fusion_dropout, rngs=rngs)

  def slots(self, i, y, previous, rngs):
    return self.dropout(self.probs[i](y), rngs=rngs)


class EndToEnd(LayerWise):
  """E-DIT: the projected text enters at block 0 and travels on, projected again before every block."""

  travels = True

  def slots(self, i, y, previous, rngs):
    return super().slots(i, y if previous is None else previous, previous, rngs)


class LayerWiseProjected(LayerWise):
  """L-DIT where text and image differ in width: one projection to the image's width first."""

  def __init__(self, config: DitSamConfig, *, rngs: nnx.Rngs):
    super().__init__(config, rngs=rngs)
    self.prob_text = layers.Linear(config.text_encoder.width, config.image_encoder.width, rngs=rngs)

  def features(self, y):
    return self.prob_text(y)


class EndToEndTokens(Instruction):
  """E-DIT with learnt tokens added between blocks instead of projections."""

  def __init__(self, config: DitSamConfig, *, rngs: nnx.Rngs):
    encoder = config.image_encoder
    self.probs = _zero_linear(encoder.width, rngs)
    shape = (encoder.depth - 1, config.max_text_tokens, encoder.width)
    initial = nnx.initializers.xavier_uniform(in_axis=1, out_axis=0)  # PyTorch's fans of a tensor of three axes
    self.tokens = nnx.Param(initial(rngs.params(), shape))
    self.dropout = nnx.Dropout(config.fusion_dropout, rngs=rngs)

  def slots(self, i, y, previous, rngs):
    if previous is None:
      return self.dropout(self.probs(y), rngs=rngs)
    return previous + self.tokens[i - 1]


class LayerWiseTokens(Instruction):
  """L-DIT with learnt tokens added to the text instead of projections."""

  travels = False

  def __init__(self, config: DitSamConfig, *, rngs: nnx.Rngs):
    encoder = config.image_encoder
    shape = (encoder.depth, config.max_text_tokens, encoder.width)
    self.tokens = nnx.Param(jax.random.normal(rngs.params(), shape))

  def slots(self, i, y, previous, rngs):
    return y + self.tokens[i]


class StdNorm(nnx.Module):
  """The release's own normalisation: standard deviation with n-1, eps added to it (not to the variance)."""

  def __init__(self, width: int):
    self.scale = nnx.Param(jnp.ones(width))
    self.bias = nnx.Param(jnp.zeros(width))

  def __call__(self, x: jax.Array) -> jax.Array:
    wide = layers.at_least_f32(x)
    centred = wide - wide.mean(-1, keepdims=True)
    std = wide.std(-1, keepdims=True, ddof=1)
    return (self.scale[...] * centred / (std + 1e-6) + self.bias[...]).astype(x.dtype)


class CrossAttend(nnx.Module):
  """Multi-head attention of the text over the slots, inner width 512: [B, T, C] x 2 -> [B, T, C]."""

  def __init__(self, width: int, *, rngs: nnx.Rngs):
    self.q_proj, self.k_proj, self.v_proj = (layers.Linear(width, CROSS_WIDTH, rngs=rngs) for _ in range(3))
    self.out_proj = layers.Linear(CROSS_WIDTH, width, rngs=rngs)

  def __call__(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
    q, k, v = (layers.split_heads(x, CROSS_HEADS) for x in (self.q_proj(queries), self.k_proj(keys), self.v_proj(keys)))
    return self.out_proj(layers.merge_heads(layers.dot_product_attention(q, k, v)))


class CrossAttention(LayerWise):
  """The projected text plus what it attends to in the slots that come out of the block before."""

  travels = True

  def __init__(self, config: DitSamConfig, *, rngs: nnx.Rngs):
    super().__init__(config, rngs=rngs)
    width, depth = config.image_encoder.width, config.image_encoder.depth
    self.cross = nnx.List(CrossAttend(width, rngs=rngs) for _ in range(depth - 1))
    self.ln = nnx.List(StdNorm(width) for _ in range(depth - 1))

  def slots(self, i, y, previous, rngs):
    projected = super().slots(i, y, previous, rngs)
    if previous is None:
      return projected
    return self.ln[i - 1](projected + self.dropout(self.cross[i - 1](y, previous), rngs=rngs))


_FUSIONS = {
  'layer_wise': LayerWise,
  'e2e': EndToEnd,
  'layer_wise_vith': LayerWiseProjected,
  'e2e_token': EndToEndTokens,
  'token_layer_wise': LayerWiseTokens,
  'cross_attention': CrossAttention,
}


def make_instruction(config: DitSamConfig, *, rngs: nnx.Rngs) -> Instruction | None:
  """The fusion named by `config.fusion`; None for the text baseline, whose encoder sees the image alone."""
  return None if config.fusion == 'none' else _FUSIONS[config.fusion](config, rngs=rngs)
