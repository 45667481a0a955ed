"""Attention between text slots and image tokens, block by block, to look into a model."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ditsam_jax.models.image_encoder import ImageEncoder


class TextAttention(NamedTuple):
  """Softmax weights of L blocks and H heads, f32, between T text slots and an h x w grid of image tokens.

  A softmax covers slots and image tokens together, so each of these two parts sums to less than 1.
  """

  from_text: jax.Array  # [B, L, H, T, h, w]: the weight of each image token in a slot's update
  to_text: jax.Array  # [B, L, H, h, w, T]: the weight of each slot in an image token's update


def text_attention(encoder: ImageEncoder, images: jax.Array, text: jax.Array) -> TextAttention:
  """Runs an encoder in eval mode and returns the weights of its attention, computed by the definition.

  Args:
    encoder: an image encoder whose fusion has text slots.
    images: normalised f32 [B, H, W, 3], sides multiples of the patch size.
    text: text features [B, T, Ct].

  Raises:
    ValueError: the encoder has no text slots, or blocks with windows, in which a slot has a softmax per window.
  """
  if encoder.instruction is None:
    raise ValueError('this image encoder has no text slots: the text meets the image in the mask decoder alone')
  if any(block.window for block in encoder.blocks):
    raise ValueError('some blocks attend within windows; expected global attention in all blocks, as in DIT')
  x, grid = encoder.image_tokens(images)
  features, slots = encoder.instruction.features(text), None
  from_text, to_text = [], []
  for i, block in enumerate(encoder.blocks):
    slots = encoder.instruction.slots(i, features, slots, None)
    tokens = slots.shape[1]
    sequence = jnp.concatenate([slots, x], axis=1)
    weights = block.attn.weights(block.norm1(sequence), grid)
    from_text.append(weights[:, :, :tokens, tokens:].reshape(*weights.shape[:2], tokens, *grid))
    to_text.append(weights[:, :, tokens:, :tokens].reshape(*weights.shape[:2], *grid, tokens))
    sequence = block(sequence, grid)
    slots, x = sequence[:, :tokens], sequence[:, tokens:]
  return TextAttention(jnp.stack(from_text, axis=1), jnp.stack(to_text, axis=1))
