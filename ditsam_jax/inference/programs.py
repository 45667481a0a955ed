"""The three programs of inference: read sentences, encode images, decode prompts. Each is compiled once a shape.

They are functions of a part of the model's weights, a plain dictionary, so models of the same structure share what is
compiled, and dispatching costs little. Embeddings and text features come out one array a row, and go in likewise: what
is kept of an image or of a sentence is an array of its own, whatever batch it was computed in.
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

Device = Any  # jax.Device, of which type checkers know nothing


class Parts(NamedTuple):
  """A model in the three parts that the programs are made of, each with its weights, in evaluation mode."""

  reader: tuple[Structure, Weights] | None  # None without a text encoder
  encoder: tuple[Structure, Weights]
  decoder: tuple[Structure, Weights]

  def mapped(self, function: Callable[[Weights], Weights]) -> 'Parts':
    """The same with other weights."""

    def of(part: tuple[Structure, Weights]) -> tuple[Structure, Weights]:
      return part[0], function(part[1])

    return Parts(self.reader and of(self.reader), of(self.encoder), of(self.decoder))


def parts_of(model: DitSam) -> Parts:
  """The parts of a model, whose own mode does not matter."""
  whole: Any = nnx.merge(*nnx.split(model))  # what is left of it is no whole DitSam
  whole.eval()
  reader, encoder = whole.text_encoder, whole.image_encoder
  whole.text_encoder = whole.image_encoder = None
  return Parts(None if reader is None else _part(reader), _part(encoder), _part(whole))


def _part(module: nnx.Module) -> tuple[Structure, Weights]:
  return Structure(module), {name: variable[...] for name, variable in weights_of(module).items()}


@functools.partial(jax.jit, static_argnums=0)
def read(part: Structure, weights: Weights, token_ids: jax.Array, token_mask: jax.Array) -> tuple[jax.Array, ...]:
  """Text features, [T, Ct] of each sentence; ids and mask [B, T]."""
  return tuple(part.module(weights)(token_ids, token_mask))


@functools.partial(jax.jit, static_argnums=0)
def encode(
  part: Structure, weights: Weights, images: jax.Array, features: Sequence[jax.Array] | None
) -> tuple[jax.Array, ...]:
  """Embeddings, [h, w, C] of each image [B, S, S, 3], seen with its sentence or alone."""
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
  """Masks of prompts.

  Args:
    part, weights: what decodes.
    embeddings: one for each of R prompts, or one for all of them.
    points: (x, y) in pixels of the model's square [R, P, 2] and SAM's labels [R, P], ABSENT at filling; None for none.
    masks: mask prompts [R, S/4, S/4], or None.
    features: of the sentence of each prompt, or None.
    multimask: three masks a prompt.
    squares: logits of the model's whole square [R, M, S, S] instead of low-resolution ones.

  Returns:
    Logits f32 [R, M, S/4, S/4] and predicted IoU f32 [R, M]; M is 3 with multimask, else 1.
  """
  model = part.module(weights)
  side = (model.config.image_size,) * 2
  sparse, counted = [], None
  if points is not None:
    sparse, counted = [model.prompt_encoder.embed_points(*points, side)], points[1] != ABSENT
  text = None if features is None else jnp.stack(features)
  output = model.decode(jnp.stack(embeddings), sparse, masks, side, multimask, text, counted)
  logits, iou = output.logits if squares else output.low_res_logits, output.iou
  return (logits, iou) if multimask else (logits[:, None], iou[:, None])
