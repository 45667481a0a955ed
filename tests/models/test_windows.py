"""Windows with a text prefix equal separately computed windows and, for a single window, global attention."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ditsam_jax.models.config import DitSamConfig, ImageEncoderConfig
from ditsam_jax.models.execution import Execution
from ditsam_jax.models.image_encoder import Block
from ditsam_jax.models.weights import weights_of
from tests.small_models import call, random_batch, random_model, small_config

GRID, SIDE, SLOTS, WIDTH = (3, 5), 2, 4, 24  # windows of 2 need padding in both directions
ENCODER = ImageEncoderConfig(
  width=WIDTH, depth=1, heads=2, global_blocks=(), pretrain_grid=4, pretrain_window=SIDE, attention_scope='windowed'
)


@pytest.fixture(scope='module')
def block():
  made = Block(ENCODER, 0, rngs=nnx.Rngs(0))
  rng = np.random.default_rng(0)
  for variable in weights_of(made).values():
    variable.set_value(jnp.asarray(rng.normal(0, 0.3, variable.shape), jnp.float32))
  return made


@pytest.mark.slow
def test_windows_attend_to_themselves_and_all_slots_and_slots_are_averaged(block):
  x = np.random.default_rng(1).normal(size=(2, SLOTS + 15, WIDTH)).astype(np.float32)
  normed = np.asarray(call(block.norm1, x))
  image = np.zeros((2, 4, 6, WIDTH), np.float32)
  image[:, :3, :5] = normed[:, SLOTS:].reshape(2, 3, 5, WIDTH)
  attended, slots = np.zeros_like(image), []
  for row in range(0, 4, SIDE):
    for column in range(0, 6, SIDE):
      window = image[:, row : row + SIDE, column : column + SIDE].reshape(2, SIDE * SIDE, WIDTH)
      out = call(block.attn, np.concatenate([normed[:, :SLOTS], window], axis=1), grid=(SIDE, SIDE))
      slots.append(out[:, :SLOTS])
      attended[:, row : row + SIDE, column : column + SIDE] = out[:, SLOTS:].reshape(2, SIDE, SIDE, WIDTH)
  attended = np.concatenate([np.mean(slots, axis=0), attended[:, :3, :5].reshape(2, 15, WIDTH)], axis=1)
  expected = jnp.asarray(x + attended)
  expected = expected + call(block.mlp, call(block.norm2, expected))
  np.testing.assert_allclose(call(block, x, grid=GRID), expected, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize('fusion', ['layer_wise', 'e2e', 'cross_attention'])
def test_one_window_over_the_whole_grid_equals_global_attention(fusion):
  encoder = ImageEncoderConfig(width=24, depth=2, heads=2, global_blocks=(), pretrain_grid=4, pretrain_window=4)
  windowed = dataclasses.replace(encoder, attention_scope='windowed')
  batch = random_batch(2)
  inputs = batch['image'], batch['token_ids'], batch['token_mask']
  outputs = []
  for settings in (encoder, windowed):
    model = random_model(small_config(image_encoder=settings, fusion=fusion), seed=3)
    model.eval()
    outputs.append(call(model, *inputs).logits)
  np.testing.assert_allclose(*outputs, atol=2e-5)


def test_scanned_windows_are_the_same():
  """The tables of windows of 3 are those of their windows, not of the grid of 4."""
  encoder = dataclasses.replace(ENCODER, depth=2, pretrain_window=3)
  model = random_model(small_config(image_encoder=encoder), seed=4)
  model.eval()
  batch = random_batch(1)
  text = call(model.text_encoder, batch['token_ids'], batch['token_mask'])
  looped, scanned = (
    call(model.image_encoder, batch['image'], text, execution=Execution(scan=on)) for on in (False, True)
  )
  np.testing.assert_allclose(looped, scanned, atol=2e-5)


def test_global_blocks_stay_global():
  encoder = dataclasses.replace(ENCODER, depth=3, global_blocks=(1,))
  assert [encoder.window(block) for block in range(3)] == [SIDE, 0, SIDE]
  assert [dataclasses.replace(encoder, attention_scope='global').window(block) for block in range(3)] == [0, 0, 0]
  with pytest.raises(ValueError, match="attention_scope is 'near'; expected 'global' or 'windowed'"):
    DitSamConfig(dataclasses.replace(encoder, attention_scope='near'))
