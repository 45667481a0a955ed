"""The three programs of inference: read sentences, encode images, decode prompts. Each compiles once per shape.

They are functions of plain dictionaries of weights, so models of the same structure share compiled programs and
dispatch is cheap. Embeddings and text features are separate arrays, one per row, so each can be cached and freed
independently of the batch it was computed in.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from ditsam_jax.models.ditsam import DitSam
from ditsam_jax.models.prompt_encoder import ABSENT
from ditsam_jax.models.weights import Structure, Weights, weights_of

Device = Any  # jax.Device, which type checkers do not know


class Parts(NamedTuple):
  """A model split into the parts that the three programs run, each with its weights, in eval mode."""

  reader: tuple[Structure, Weights] | None  # None without a text encoder
  encoder: tuple[Structure, Weights]
  decoder: tuple[Structure, Weights]

  def mapped(self, function: Callable[[Weights], Weights]) -> 'Parts':
    """Applies `function` to the weights of each part."""

    def of(part: tuple[Structure, Weights]) -> tuple[Structure, Weights]:
      return part[0], function(part[1])

    return Parts(self.reader and of(self.reader), of(self.encoder), of(self.decoder))


def parts_of(model: DitSam) -> Parts:
  """Splits a model, in train or eval mode, into its parts."""
  rest: Any = nnx.merge(*nnx.split(model))  # a copy, reduced below to the decoder
  rest.eval()
  reader, encoder = rest.text_encoder, rest.image_encoder
  rest.text_encoder = rest.image_encoder = None
  return Parts(None if reader is None else _part(reader), _part(encoder), _part(rest))


def _part(module: nnx.Module) -> tuple[Structure, Weights]:
  return Structure(module), {name: variable[...] for name, variable in weights_of(module).items()}


@functools.partial(jax.jit, static_argnums=0)
def read(part: Structure, weights: Weights, token_ids: jax.Array, token_mask: jax.Array) -> tuple[jax.Array, ...]:
  """Returns the text features [T, Ct] of each sentence; ids and mask are [B, T]."""
  return tuple(part.module(weights)(token_ids, token_mask))


@functools.partial(jax.jit, static_argnums=0)
def encode(
  part: Structure, weights: Weights, images: jax.Array, features: Sequence[jax.Array] | None
) -> tuple[jax.Array, ...]:
  """Returns the embedding [h, w, C] of each image [B, S, S, 3], encoded with its sentence or alone."""
  return tuple(part.module(weights)(images, None if features is None else jnp.stack(features)))


@functools.partial(jax.jit, static_argnums=0, static_argnames=('multimask', 'squares'))
def decode(
  part: Structure,
  weights: Weights,
  embeddings: Sequence[jax.Array],
  points: tuple[jax.Array, jax.Array] | None,
  masks: jax.Array | None,
  features: Sequence[jax.Array] | None,
  *,
  multimask: bool,
  squares: bool,
) -> tuple[jax.Array, jax.Array]:
  """Decodes prompts into masks.

  Args:
    part, weights: the decoder.
    embeddings: one per prompt, or a single one for all R prompts.
    points: (x, y) in pixels of the model's square [R, P, 2] and SAM's labels [R, P], ABSENT for padding; or None.
    masks: mask prompts [R, S/4, S/4], or None.
    features: text features of each prompt's sentence, or None.
    multimask: predict three masks per prompt.
    squares: return logits at the resolution of the model's square, [R, M, S, S].

  Returns:
    Logits f32 [R, M, S/4, S/4] and predicted IoU f32 [R, M]; M is 3 with multimask, else 1.
  """
  model = part.module(weights)
  side = (model.config.image_size,) * 2
  sparse, sparse_mask = [], None
  if points is not None:
    sparse, sparse_mask = [model.prompt_encoder.embed_points(*points, side)], points[1] != ABSENT
  text = None if features is None else jnp.stack(features)
  output = model.decode(jnp.stack(embeddings), sparse, masks, side, multimask, text, sparse_mask)
  logits, iou = output.logits if squares else output.low_res_logits, output.iou
  return (logits, iou) if multimask else (logits[:, None], iou[:, None])
