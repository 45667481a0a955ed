"""What text slots and image tokens attend to in a model, for one sentence on one image."""

import dataclasses
import functools
from typing import Any

import cv2
import jax
import numpy as np

from ditsam_jax.errors import UserError
from ditsam_jax.geometry.letterbox import own_size_logits
from ditsam_jax.inference.framing import Framed, frame
from ditsam_jax.inference.programs import read
from ditsam_jax.inference.prompts import check_text
from ditsam_jax.inference.segmenter import Segmenter
from ditsam_jax.models.text_attention import TextAttention, text_attention
from ditsam_jax.models.weights import Structure, Weights
from ditsam_jax.storage.image_files import read_image


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionMaps:
  """Softmax weights of L blocks and H heads between T text slots and an h x w grid of image tokens.

  Attributes:
    tokens: the word piece of each slot: [CLS], the sentence, [SEP], padding.
    from_text: f32 [L, H, T, h, w], the weight of each image token in a slot's update.
    to_text: f32 [L, H, h, w, T], the weight of each slot in an image token's update.
    framed: the image in the model's square, which the grid covers.
  """

  tokens: tuple[str, ...]
  from_text: np.ndarray
  to_text: np.ndarray
  framed: Framed

  def at_image_size(self, grid: np.ndarray) -> np.ndarray:
    """Resizes values of the grid [h, w] to the image's own size, f32, and cuts off the padding of the square."""
    side = self.framed.config.image_size
    square = cv2.resize(np.asarray(grid, np.float32), (side, side), interpolation=cv2.INTER_LINEAR)
    return own_size_logits(square, self.framed.box, self.framed.size)


def attention_maps(segmenter: Segmenter, image: Any, sentence: str) -> AttentionMaps:
  """Returns the attention between a sentence and an image, block by block.

      maps = ditsam_jax.attention_maps(segmenter, 'scene.png', 'the red circle')
      maps.to_text[-1].mean(0).sum(-1)  # [h, w]: how much each image token reads from the sentence in the last block

  The weights are computed by attention's definition, in f32 from the segmenter's weights. In L-DIT a slot's update is
  overwritten before the next block, so only `to_text` has an effect on the mask.

  Args:
    segmenter: a segmenter with a model whose image encoder reads the text.
    image: see `image_files.read_image`.
    sentence: the text prompt.

  Raises:
    UserError: the image or sentence is invalid, or the model's image encoder does not read the text or uses windows.
  """
  if not segmenter.config.encodes_text_with_image:
    fusion = segmenter.config.fusion
    raise UserError(f"the model's fusion is {fusion!r}: its image encoder does not read the text; expected a DIT model")
  if segmenter.config.image_encoder.attention_scope != 'global':
    raise UserError("the model attends within windows; expected attention_scope 'global', as in DIT")
  check_text(sentence)
  tokens = segmenter.sentence(segmenter.prompt(sentence))
  assert tokens is not None and segmenter.tokenizer is not None  # `prompt` refuses models without text
  framed = frame(read_image(image), segmenter.config)
  parts = segmenter.engine.parts
  assert parts.reader is not None  # models with a fusion have a text encoder
  features = read(*parts.reader, tokens.token_ids[None], tokens.token_mask[None])[0]
  found = _attention(*parts.encoder, framed.square.pixels[None], features[None])
  pieces = {index: piece for piece, index in segmenter.tokenizer.vocabulary.items()}
  return AttentionMaps(
    tuple(pieces[int(index)] for index in tokens.token_ids),
    np.asarray(found.from_text[0]),
    np.asarray(found.to_text[0]),
    framed,
  )


@functools.partial(jax.jit, static_argnums=0)
def _attention(part: Structure, weights: Weights, images: jax.Array, text: jax.Array) -> TextAttention:
  return text_attention(part.module(weights), images, text)
