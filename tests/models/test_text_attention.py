"""Attention between text slots and image tokens, against loops in NumPy over the blocks' inputs."""

import jax
import numpy as np
import pytest
from flax import nnx

from ditsam_jax.models.text_attention import text_attention
from tests.models.test_instruction import DEPTH, GRID, TOKENS, WIDTH, small_config
from tests.small_models import SAM, call, random_model

HEADS = 2


def softmax(logits):
  weights = np.exp(logits - logits.max())
  return weights / weights.sum()


def layer_norm(x, norm):
  centred = x - x.mean(-1, keepdims=True)
  return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * norm.scale[...] + norm.bias[...]


def by_definition(block, sequence):
  """The weights [H, N, N] of one block on [slots, image tokens], float64 [N, C], query by query and key by key."""
  x = layer_norm(sequence, block.norm1)
  qkv = x @ np.float64(block.attn.qkv.kernel[...]) + block.attn.qkv.bias[...]
  q, k, _ = np.float64(qkv).reshape(len(x), 3, HEADS, -1).transpose(1, 2, 0, 3)
  # Tables of 2 * size - 1 rows, resized as PyTorch's linear interpolation does, with half-pixel centres.
  tables = [resized(np.float64(table[...]), 2 * GRID - 1) for table in (block.attn.rel_pos_h, block.attn.rel_pos_w)]
  weights = np.zeros((HEADS, len(x), len(x)))
  for head, i in np.ndindex(HEADS, len(x)):
    logits = k[head] @ q[head, i] / np.sqrt(q.shape[-1])
    for j in range(TOKENS, len(x)):
      if i >= TOKENS:
        offset = np.array(divmod(i - TOKENS, GRID)) - divmod(j - TOKENS, GRID) + GRID - 1
        logits[j] += q[head, i] @ tables[0][offset[0]] + q[head, i] @ tables[1][offset[1]]
    weights[head, i] = softmax(logits)
  return weights


def resized(table, size):
  places = (np.arange(size) + 0.5) * len(table) / size - 0.5
  rows = np.arange(len(table))
  return np.stack([np.interp(places, rows, column) for column in table.T], -1)


@pytest.mark.slow
@pytest.mark.verifies(
  'Attention between text slots and image tokens, block by block', against='loops in float64 NumPy', within='2e-6'
)
@pytest.mark.parametrize('fusion', ['layer_wise', 'e2e'])
def test_weights_of_every_block_match_the_definition(fusion):
  encoder = random_model(small_config(fusion)).image_encoder
  rng = np.random.default_rng(1)
  images = rng.normal(size=(2, 16 * GRID, 16 * GRID, 3)).astype(np.float32)
  text = rng.normal(size=(2, TOKENS, WIDTH)).astype(np.float32)
  found = jax.tree.map(np.asarray, nnx.jit(text_attention)(encoder, images, text))
  assert found.from_text.shape == (2, DEPTH, HEADS, TOKENS, GRID, GRID)
  assert found.to_text.shape == (2, DEPTH, HEADS, GRID, GRID, TOKENS)
  x, slots = np.asarray(encoder.image_tokens(images)[0]), None
  for i, block in enumerate(encoder.blocks):
    w = encoder.instruction.probs[i]
    slots = (text if slots is None or fusion == 'layer_wise' else slots) @ w.kernel[...] + w.bias[...]
    sequence = np.concatenate([slots, x], axis=1)
    for b in range(2):
      expected = by_definition(block, np.float64(sequence[b]))
      from_text = expected[:, :TOKENS, TOKENS:].reshape(HEADS, TOKENS, GRID, GRID)
      to_text = expected[:, TOKENS:, :TOKENS].reshape(HEADS, GRID, GRID, TOKENS)
      np.testing.assert_allclose(found.from_text[b, i], from_text, atol=2e-6)
      np.testing.assert_allclose(found.to_text[b, i], to_text, atol=2e-6)
    sequence = np.asarray(call(block, sequence, grid=(GRID, GRID)))
    slots, x = sequence[:, :TOKENS], sequence[:, TOKENS:]


def test_encoders_without_slots_or_with_windows_are_refused():
  images, text = np.zeros((1, 80, 80, 3), np.float32), np.zeros((1, 5, 16), np.float32)
  with pytest.raises(ValueError, match='no text slots'):
    text_attention(random_model(SAM).image_encoder, images, text)
  encoder = random_model(small_config('layer_wise')).image_encoder
  encoder.blocks[0].window = 2
  with pytest.raises(ValueError, match='within windows'):
    text_attention(encoder, images, text)
