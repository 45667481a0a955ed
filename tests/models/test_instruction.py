"""The fusions against the rules of the paper's and the release's variants, written down again in NumPy.

y: text features, s: the slots after block i-1. The blocks themselves are held to account in test_golden.py.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ditsam_jax.models.config import DitSamConfig, ImageEncoderConfig, MaskDecoderConfig, TextEncoderConfig
from ditsam_jax.models.instruction import FUSIONS, Instruction, make_instruction
from ditsam_jax.models.weights import weights_of
from tests.small_models import call, random_model

WIDTH, TEXT_WIDTH, DEPTH, TOKENS, GRID = 16, 24, 3, 5, 3
WITH_SLOTS = [name for name, fusion in FUSIONS.items() if fusion.has_slots]


def small_config(fusion):
  text_width = TEXT_WIDTH if fusion == 'layer_wise_vith' else WIDTH
  return DitSamConfig(
    ImageEncoderConfig(width=WIDTH, depth=DEPTH, heads=2, global_blocks=(1,), pretrain_grid=4, pretrain_window=2),
    MaskDecoderConfig(width=16, heads=2, mlp_width=16, iou_hidden=16),
    TextEncoderConfig(vocab_size=10, width=text_width, depth=1, heads=2, mlp_width=16, max_positions=20, dropout=0.0),
    fusion=fusion,
    fusion_dropout=0.0,
    image_size=16 * GRID,
    max_text_tokens=TOKENS,
  )


def fresh(config) -> Instruction | None:
  return make_instruction(config.fusion, config.fusion_sizes, rngs=nnx.Rngs(0))


class Rules:
  """slots(i, y, s) of all fusions."""

  def __init__(self, weights: dict[str, np.ndarray]):
    self.w = weights

  def linear(self, name, x):
    return x @ self.w[f'{name}.kernel'] + self.w[f'{name}.bias']

  def layer_wise(self, i, y, s):
    return self.linear(f'probs.{i}', y)

  def e2e(self, i, y, s):
    return self.linear(f'probs.{i}', y if i == 0 else s)

  def layer_wise_vith(self, i, y, s):
    return self.linear(f'probs.{i}', self.linear('prob_text', y))

  def e2e_token(self, i, y, s):
    return self.linear('probs', y) if i == 0 else s + self.w['tokens'][i - 1]

  def token_layer_wise(self, i, y, s):
    return y + self.w['tokens'][i]

  def cross_attention(self, i, y, s):
    projected = self.linear(f'probs.{i}', y)
    if i == 0:
      return projected
    x = projected + self.attend(f'cross.{i - 1}', y, s)
    mean = x.mean(-1, keepdims=True)
    deviation = np.sqrt(((x - mean) ** 2).sum(-1, keepdims=True) / (WIDTH - 1))
    return self.w[f'ln.{i - 1}.scale'] * (x - mean) / (deviation + 1e-6) + self.w[f'ln.{i - 1}.bias']

  def attend(self, name, y, s):
    """8 heads of 64, one sentence and one head at a time."""
    q, k, v = (self.linear(f'{name}.{part}_proj', x) for part, x in (('q', y), ('k', s), ('v', s)))
    out = np.zeros_like(q)
    for b in range(len(q)):
      for head in range(8):
        part = slice(64 * head, 64 * head + 64)
        logits = q[b, :, part] @ k[b, :, part].T / 8
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        out[b, :, part] = weights / weights.sum(-1, keepdims=True) @ v[b, :, part]
    return self.linear(f'{name}.out_proj', out)


@pytest.mark.slow
@pytest.mark.verifies(
  'What every fusion puts before every block', against='the rules of paper and release, in NumPy', within='1e-4'
)
@pytest.mark.parametrize('fusion', WITH_SLOTS)
def test_the_slots_follow_the_rules(fusion):
  encoder = random_model(small_config(fusion)).image_encoder
  rng = np.random.default_rng(1)
  images = rng.normal(size=(2, 16 * GRID, 16 * GRID, 3)).astype(np.float32)
  text = rng.normal(size=(2, TOKENS, TEXT_WIDTH if fusion == 'layer_wise_vith' else WIDTH)).astype(np.float32)
  rule = getattr(
    Rules({name: np.asarray(variable[...]) for name, variable in weights_of(encoder.instruction).items()}), fusion
  )

  @nnx.jit
  def block(encoder_block, slots, image):
    x = encoder_block(jnp.concatenate([slots, image], axis=1), (GRID, GRID))
    return x[:, :TOKENS], x[:, TOKENS:]

  expected = without_blocks(encoder, images)
  slots = None
  for i in range(DEPTH):
    slots, expected = block(encoder.blocks[i], rule(i, text, slots), expected)
  expected = encoder.neck(expected.reshape(2, GRID, GRID, WIDTH))
  np.testing.assert_allclose(call(encoder, images, text), expected, atol=1e-4)


def without_blocks(encoder, images):
  """Image tokens [B, h*w, C] before block 0, from an encoder without blocks and neck."""
  empty = nnx.clone(encoder)
  empty.blocks, empty.instruction, empty.neck = nnx.List([]), nnx.data(None), lambda x: x
  return empty(images).reshape(len(images), GRID * GRID, WIDTH)


@pytest.mark.slow
def test_the_baselines_image_encoder_ignores_the_text():
  config = small_config('none')
  assert fresh(config) is None
  encoder = random_model(config).image_encoder
  images = np.random.default_rng(0).normal(size=(1, 48, 48, 3)).astype(np.float32)
  np.testing.assert_array_equal(encoder(images), encoder(images, np.ones((1, TOKENS, WIDTH), np.float32)))


@pytest.mark.parametrize('fusion', ['layer_wise', 'e2e', 'layer_wise_vith', 'e2e_token', 'cross_attention'])
def test_projections_start_at_zero(fusion):
  instruction = fresh(small_config(fusion))
  probs = {name: variable for name, variable in weights_of(instruction).items() if name.startswith('probs')}
  assert len(probs) == (2 if fusion == 'e2e_token' else 2 * DEPTH)
  assert not any(np.any(variable[...]) for variable in probs.values())


def test_learnt_tokens_are_initialised_as_in_the_release():
  """(depth - 1, 20, C): Xavier uniform with PyTorch's fans of a 3-axis tensor; (depth, 20, C): standard normal."""
  config = dataclasses.replace(small_config('e2e_token'), max_text_tokens=20)
  config = dataclasses.replace(config, image_encoder=dataclasses.replace(config.image_encoder, depth=12))
  tokens = np.asarray(fresh(config).tokens[...])
  fan_in, fan_out = 20 * WIDTH, 11 * WIDTH  # torch: second axis and first axis, times the receptive field
  limit = np.sqrt(6 / (fan_in + fan_out))
  assert tokens.shape == (11, 20, WIDTH)
  assert 0.98 * limit < np.abs(tokens).max() <= limit
  normal = np.asarray(fresh(dataclasses.replace(config, fusion='token_layer_wise')).tokens[...])
  assert normal.shape == (12, 20, WIDTH)
  assert abs(normal.mean()) < 0.1 and abs(normal.std() - 1) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize('fusion', [f for f in WITH_SLOTS if f != 'token_layer_wise'])
def test_dropout_is_applied_to_projections_in_train_mode_only(fusion):
  config = dataclasses.replace(small_config(fusion), fusion_dropout=0.5)
  instruction = random_model(config).image_encoder.instruction
  instruction.train()
  text = np.random.default_rng(0).normal(size=(1, TOKENS, config.text_encoder.width)).astype(np.float32)
  features = instruction.features(text)

  def first(seed):
    return np.asarray(instruction.slots(0, features, None, nnx.Rngs(dropout=seed)))

  dropped = first(0) == 0
  assert 0.2 < dropped.mean() < 0.8
  np.testing.assert_array_equal(first(0), first(0))
  assert (first(1) == 0).tolist() != dropped.tolist()
  trained = first(0)
  instruction.eval()
  np.testing.assert_allclose(trained[~dropped], 2 * first(0)[~dropped], rtol=1e-6)


def test_token_variants_have_no_dropout_on_tokens():
  config = dataclasses.replace(small_config('token_layer_wise'), fusion_dropout=0.5)
  instruction = random_model(config).image_encoder.instruction
  instruction.train()
  text = np.ones((1, TOKENS, WIDTH), np.float32)
  np.testing.assert_array_equal(instruction.slots(1, text, None, nnx.Rngs(dropout=0)), text + instruction.tokens[1])
