"""The fusions: the content of the text slots before block i (arXiv 2404.00650, section 3).

A fusion is one class, listed in FUSIONS. It defines its slots, the DIT release's tensors for its parameters, its
requirements on a model, and its FLOPs. The names that configs accept, the converter's table of names, the detection of
a checkpoint's fusion and MFU are derived from the classes; tests compare the table in docs/fusions.md with them.
"""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from ditsam_jax.models import layers

CROSS_HEADS, CROSS_WIDTH = 8, 512


class Sizes(NamedTuple):
  """The model sizes that a fusion needs."""

  width: int  # channels of image tokens and text slots
  depth: int  # blocks of the image encoder
  text_width: int | None  # channels of the text features; None without a text encoder
  text_tokens: int
  dropout: float  # after each projection of the text, in training


class Tensor(NamedTuple):
  """A parameter and its tensor in the DIT release. `#` stands for a number, one parameter per block."""

  path: str  # dotted, below image_encoder.instruction
  source: str  # the release's name, below visual_encoder
  layout: str = 'same'  # 'linear': [out, in] in the release, [in, out] here
  text_axis: int | None = None  # axis of the text tokens, if the tensor fixes their number


def _linear_tensors(path: str, source: str | None = None) -> tuple[Tensor, ...]:
  source = source or path
  return Tensor(f'{path}.kernel', f'{source}.weight', 'linear'), Tensor(f'{path}.bias', f'{source}.bias')


class Instruction(nnx.Module):
  """A fusion. `features` runs once per image, `slots` before each block."""

  name: ClassVar[str]  # in configs and on the command line
  title: ClassVar[str]  # for display
  # Slots at block 0 and blocks i > 0. y: text features, s: slots after block i-1, P, Q: projections, t: learnt tokens.
  formula: ClassVar[tuple[str, str]]
  tensors: ClassVar[tuple[Tensor, ...]] = ()
  has_slots: ClassVar[bool] = True  # False: the image encoder does not see the text
  any_text_width: ClassVar[bool] = False  # whether text features may differ in width from image tokens
  travels: ClassVar[bool] = True  # whether slots(i) reads the slots after block i-1

  def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs):
    del sizes, rngs

  @classmethod
  def check(cls, sizes: Sizes) -> None:
    """Raises ValueError if the fusion does not support a model of these sizes."""
    if sizes.text_width is None:
      raise ValueError(f"model.fusion is {cls.name!r} but the model has no text encoder; set fusion to 'none'")
    if sizes.text_width != sizes.width and not cls.any_text_width:
      others = ', '.join(name for name, fusion in FUSIONS.items() if fusion.any_text_width and fusion.has_slots)
      raise ValueError(
        f'model.fusion {cls.name!r} needs text and image of the same width, but they are {sizes.text_width} and '
        f'{sizes.width}; for other widths: {others}'
      )

  @classmethod
  def flops(cls, sizes: Sizes) -> int:
    """FLOPs of the slots of all blocks for one image, matrix products only (see models/flops.py)."""
    raise NotImplementedError

  def features(self, y: jax.Array) -> jax.Array:
    """Converts text features [B, T, Ct] to the argument y of `slots`."""
    return y

  def slots(self, i: int, y: jax.Array, previous: jax.Array | None, rngs: nnx.Rngs | None) -> jax.Array:
    """Returns the slots [B, T, C] before block i, given those after block i-1 (None at block 0)."""
    raise NotImplementedError


class TextBaseline(Instruction):
  """Text only enters the mask decoder; the image encoder sees the image alone."""

  name, title = 'none', 'text baseline'
  formula = 'no slots', 'no slots'
  has_slots = False
  any_text_width = True
  travels = False

  @classmethod
  def check(cls, sizes):
    del sizes

  @classmethod
  def flops(cls, sizes):
    return 0


class LayerWise(Instruction):
  """Every block gets its own projection of the text."""

  name, title = 'layer_wise', 'L-DIT'
  formula = 'P0 y', 'Pi y'
  tensors = _linear_tensors('probs.#')
  travels = False

  def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs):
    self.probs = nnx.List(_zero_linear(sizes.width, rngs) for _ in range(sizes.depth))
    self.dropout = nnx.Dropout(sizes.dropout, rngs=rngs)

  @classmethod
  def flops(cls, sizes):
    return sizes.depth * layers.linear_flops(sizes.text_tokens, sizes.width, sizes.width)

  def slots(self, i, y, previous, rngs):
    return self.dropout(self.probs[i](y), rngs=rngs)


class EndToEnd(LayerWise):
  """The projected text enters at block 0, travels on, and is projected again before every block."""

  name, title = 'e2e', 'E-DIT'
  formula = 'P0 y', 'Pi s'
  travels = True

  def slots(self, i, y, previous, rngs):
    return super().slots(i, y if previous is None else previous, previous, rngs)


class LayerWiseProjected(LayerWise):
  """L-DIT for text and image of different widths: the text is first projected to the image's width."""

  name, title = 'layer_wise_vith', 'L-DIT for other widths'
  formula = 'P0 Q y', 'Pi Q y'
  tensors = LayerWise.tensors + _linear_tensors('prob_text')
  any_text_width = True

  def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs):
    super().__init__(sizes, rngs=rngs)
    assert sizes.text_width is not None  # see `check`
    self.prob_text = layers.Linear(sizes.text_width, sizes.width, rngs=rngs)

  @classmethod
  def flops(cls, sizes):
    return super().flops(sizes) + layers.linear_flops(sizes.text_tokens, sizes.text_width, sizes.width)

  def features(self, y):
    return self.prob_text(y)


class EndToEndTokens(Instruction):
  """E-DIT with learnt tokens added between blocks instead of projections."""

  name, title = 'e2e_token', 'E-DIT, tokens'
  formula = 'P y', 's + t(i-1)'
  tensors = (*_linear_tensors('probs'), Tensor('tokens', 'tokens', text_axis=1))

  @classmethod
  def check(cls, sizes):
    super().check(sizes)
    if sizes.depth < 2:
      raise ValueError(f'model.fusion {cls.name!r} adds tokens between blocks; expected an image encoder of 2 or more')

  def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs):
    self.probs = _zero_linear(sizes.width, rngs)
    shape = (sizes.depth - 1, sizes.text_tokens, sizes.width)
    initial = nnx.initializers.xavier_uniform(in_axis=1, out_axis=0)  # PyTorch's fans of a tensor of three axes
    self.tokens = nnx.Param(initial(rngs.params(), shape))
    self.dropout = nnx.Dropout(sizes.dropout, rngs=rngs)

  @classmethod
  def flops(cls, sizes):
    return layers.linear_flops(sizes.text_tokens, sizes.width, sizes.width)

  def slots(self, i, y, previous, rngs):
    if previous is None:
      return self.dropout(self.probs(y), rngs=rngs)
    return previous + self.tokens[i - 1]


class LayerWiseTokens(Instruction):
  """L-DIT with learnt tokens added to the text instead of projections."""

  name, title = 'token_layer_wise', 'L-DIT, tokens'
  formula = 'y + t0', 'y + ti'
  tensors = (Tensor('tokens', 'tokens', text_axis=1),)
  travels = False

  def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs):
    shape = (sizes.depth, sizes.text_tokens, sizes.width)
    self.tokens = nnx.Param(jax.random.normal(rngs.params(), shape))

  @classmethod
  def flops(cls, sizes):
    return 0

  def slots(self, i, y, previous, rngs):
    return y + self.tokens[i]


class CrossAttention(LayerWise):
  """The projected text plus its cross-attention over the slots after the previous block."""

  name, title = 'cross_attention', 'cross-attention'
  formula = 'P0 y', 'LN(Pi y + MHA(y, s))'
  tensors = (
    *LayerWise.tensors,
    *_linear_tensors('cross.#.q_proj', 'cross.#.linear_q'),
    *_linear_tensors('cross.#.k_proj', 'cross.#.linear_k'),
    *_linear_tensors('cross.#.v_proj', 'cross.#.linear_v'),
    *_linear_tensors('cross.#.out_proj', 'cross.#.linear_merge'),
    Tensor('ln.#.scale', 'ln.#.weight'),
    Tensor('ln.#.bias', 'ln.#.bias'),
  )
  travels = True

  def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs):
    super().__init__(sizes, rngs=rngs)
    self.cross = nnx.List(CrossAttend(sizes.width, rngs=rngs) for _ in range(sizes.depth - 1))
    self.ln = nnx.List(StdNorm(sizes.width) for _ in range(sizes.depth - 1))

  @classmethod
  def flops(cls, sizes):
    text = sizes.text_tokens
    attention = layers.attention_flops(text, text, CROSS_WIDTH)
    return super().flops(sizes) + (sizes.depth - 1) * (
      4 * layers.linear_flops(text, sizes.width, CROSS_WIDTH) + attention
    )

  def slots(self, i, y, previous, rngs):
    projected = super().slots(i, y, previous, rngs)
    if previous is None:
      return projected
    return self.ln[i - 1](projected + self.dropout(self.cross[i - 1](y, previous), rngs=rngs))


FUSIONS: dict[str, type[Instruction]] = {
  fusion.name: fusion
  for fusion in (
    TextBaseline,
    LayerWise,
    EndToEnd,
    LayerWiseProjected,
    EndToEndTokens,
    LayerWiseTokens,
    CrossAttention,
  )
}


def make_instruction(fusion: str, sizes: Sizes, *, rngs: nnx.Rngs) -> Instruction | None:
  """Creates the fusion with this name; None for the text baseline, which has no slots."""
  return FUSIONS[fusion](sizes, rngs=rngs) if FUSIONS[fusion].has_slots else None


def _zero_linear(width: int, rngs: nnx.Rngs) -> layers.Linear:
  """A linear layer with zero weights and bias, so training starts from zero slots."""
  return layers.Linear(width, width, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)


class StdNorm(nnx.Module):
  """The release's own normalisation: standard deviation with n-1, and eps added to it instead of to the variance."""

  def __init__(self, width: int):
    self.scale = nnx.Param(jnp.ones(width))
    self.bias = nnx.Param(jnp.zeros(width))

  def __call__(self, x: jax.Array) -> jax.Array:
    wide = layers.at_least_f32(x)
    centred = wide - wide.mean(-1, keepdims=True)
    std = wide.std(-1, keepdims=True, ddof=1)
    return (self.scale[...] * centred / (std + 1e-6) + self.bias[...]).astype(x.dtype)


class CrossAttend(nnx.Module):
  """Multi-head attention of the text over the slots, with inner width 512: two [B, T, C] -> [B, T, C]."""

  def __init__(self, width: int, *, rngs: nnx.Rngs):
    self.q_proj, self.k_proj, self.v_proj = (layers.Linear(width, CROSS_WIDTH, rngs=rngs) for _ in range(3))
    self.out_proj = layers.Linear(CROSS_WIDTH, width, rngs=rngs)

  def __call__(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
    q, k, v = (layers.split_heads(x, CROSS_HEADS) for x in (self.q_proj(queries), self.k_proj(keys), self.v_proj(keys)))
    return self.out_proj(layers.merge_heads(layers.dot_product_attention(q, k, v)))
