"""What the lowered step computes, and in which type; nothing is compiled here but one step."""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ditsam_jax.storage import saved_model
from tests.parallel.test_sharding import small_program
from tests.small_models import random_batch, random_model, small_config

ALONE = (1, 1, 1)


def flops(**changes):
  return small_program(ALONE, **changes).lower().cost_analysis()['flops']


@pytest.mark.slow
def test_frozen_parts_cost_no_backward_pass_where_none_is_needed():
  """A trained part costs its forward pass three times: gradients of its weights, and of what it got."""
  model = random_model(small_config(fusion='none'))
  model.eval()
  batch = random_batch(8)
  encoders = (
    jax.jit(model.image_encoder).lower(batch['image']),
    jax.jit(model.text_encoder).lower(batch['token_ids'], batch['token_mask']),
  )
  forward = sum(lowered.cost_analysis()['flops'] for lowered in encoders)
  saved = flops(fusion='none') - flops(fusion='none', freeze='image_encoder,text_encoder')
  assert saved > 1.5 * forward  # not quite twice: nobody wants the gradients of pixels and words
  # Below trained projections gradients still travel through the blocks, but not to their weights.
  assert 0.5 * forward < flops() - flops(freeze='image_encoder,text_encoder') < 0.9 * saved


@pytest.mark.slow
def test_rematerialisation_computes_more():
  assert flops() < flops(remat='attention') < flops(remat='block')


def product_types(program):
  """How many matrix products of which types a program has before XLA sees it."""
  lines = [
    line
    for line in program.lower().as_text().splitlines()
    if 'dot_general' in line and not is_row_by_row(line) or 'convolution' in line
  ]
  pairs = (re.search(r': \(tensor<([^>]*)>, tensor<([^>]*)>\)', line).groups() for line in lines)
  return collections.Counter(tuple(shape.split('x')[-1] for shape in pair) for pair in pairs)


def is_row_by_row(line):
  """Whether a product is a sum of x * y along an axis, as layer norm's gradient takes in f32: all axes left are batch's."""
  batch = re.search(r'batching_dims = \[([^\]]*)\]', line)
  result = re.search(r'-> tensor<([^>]*)>', line).group(1)
  return bool(batch) and len(batch.group(1).split(',')) == result.count('x')


@pytest.mark.slow
def test_bfloat16_reaches_every_layer():
  """Left in f32: the positional encoding, the upsampling of the logits (two products, two gradients), and the gradients
  of the small attention, whose weights are f32."""
  types = product_types(small_program(ALONE, dtype='bfloat16'))
  assert set(types) == {('bf16', 'bf16'), ('f32', 'f32')}
  assert types['f32', 'f32'] <= 9 and types['bf16', 'bf16'] > 200
  assert set(product_types(small_program(ALONE))) == {('f32', 'f32')}


@pytest.mark.slow
def test_bfloat16_keeps_the_state_in_f32_and_the_loss_near(tmp_path):
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
  assert 0 < max(moved) < 3e-3  # of steps of 1e-3
