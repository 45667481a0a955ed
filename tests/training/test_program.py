"""The lowered train step: FLOPs and types. Only one step is compiled."""

import collections
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ditsam_jax.storage import saved_model
from tests.parallel.test_sharding import small_program
from tests.small_models import random_batch, random_model, small_config

ALONE = (1, 1, 1)


@functools.cache
def lowered(**changes):
  """The lowered step, shared by tests."""
  return small_program(ALONE, **changes).lower()


def flops(**changes):
  return lowered(**changes).cost_analysis()['flops']


@pytest.mark.slow
def test_freezing_saves_unneeded_backward_passes():
  """A trained part costs three forward passes: the forward pass, and the gradients of its weights and inputs."""
  model = random_model(small_config(fusion='none'))
  model.eval()
  batch = random_batch(8)
  encoders = (
    jax.jit(model.image_encoder).lower(batch['image']),
    jax.jit(model.text_encoder).lower(batch['token_ids'], batch['token_mask']),
  )
  forward = sum(lowered.cost_analysis()['flops'] for lowered in encoders)
  saved = flops(fusion='none') - flops(fusion='none', freeze='image_encoder,text_encoder')
  assert saved > 1.5 * forward  # not quite 2, because gradients of pixels and words are not computed anyway
  # With trained projections, gradients still flow through the blocks, but not to their weights.
  assert 0.5 * forward < flops() - flops(freeze='image_encoder,text_encoder') < 0.9 * saved


@pytest.mark.slow
def test_rematerialisation_adds_flops():
  assert flops() < flops(remat='elementwise') < flops(remat='products') < flops(remat='block')


def product_types(**changes):
  """Counts the matrix products of the lowered step by operand types."""
  lines = [
    line
    for line in lowered(**changes).as_text().splitlines()
    if 'dot_general' in line and not is_row_by_row(line) or 'convolution' in line
  ]
  pairs = (re.search(r': \(tensor<([^>]*)>, tensor<([^>]*)>\)', line).groups() for line in lines)
  return collections.Counter(tuple(shape.split('x')[-1] for shape in pair) for pair in pairs)


def is_row_by_row(line):
  """Whether a product has only batch axes besides the contracted one, like the f32 sums in layer norm's gradient."""
  batch = re.search(r'batching_dims = \[([^\]]*)\]', line)
  result = re.search(r'-> tensor<([^>]*)>', line).group(1)
  return bool(batch) and len(batch.group(1).split(',')) == result.count('x')


@pytest.mark.slow
def test_bfloat16_reaches_every_layer():
  """Only these stay in f32: the positional encoding, the upsampling of the logits (two products and two gradients), and
  the gradients of small attentions, whose softmax weights are f32."""
  types = product_types(dtype='bfloat16')
  assert set(types) == {('bf16', 'bf16'), ('f32', 'f32')}
  assert types['f32', 'f32'] <= 9 and types['bf16', 'bf16'] > 200
  assert set(product_types()) == {('f32', 'f32')}


@pytest.mark.slow
def test_bfloat16_keeps_the_state_in_f32_and_hardly_changes_the_loss(tmp_path):
  start = str(saved_model.save(tmp_path / 'start', random_model(small_config())))
  found = {}
  for dtype in ('float32', 'bfloat16'):
    program = small_program(ALONE, dropout=0.0, dtype=dtype)
    state, _ = program.initial_state(start)
    state, metrics = program.step(state, program.assemble(random_batch(8)))
    assert {x.dtype for x in jax.tree.leaves((state.params, state.ema, state.opt_state)) if x.ndim} == {
      jnp.dtype('float32')
    }
    found[dtype] = float(metrics['loss']), {name: np.asarray(x) for name, x in state.params.items()}
  (loss, params), (rounded, others) = found['float32'], found['bfloat16']
  assert loss != rounded and rounded == pytest.approx(loss, rel=0.02)
  moved = [np.abs(params[name] - others[name]).max() for name in params]
  assert 0 < max(moved) < 3e-3  # updates are about 1e-3
