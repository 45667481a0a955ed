"""What a train step updates, and what it leaves unchanged."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ditsam_jax.config import recipe
from ditsam_jax.config.freeze import freeze_patterns
from ditsam_jax.models.weights import weights_of
from ditsam_jax.training.optimizer import make_optimizer
from ditsam_jax.training.step import averaged_model, make_train_step, text_forward
from tests.small_models import make_state, random_batch, random_model, small_config

LOSS = dict(bce=1.0, dice=0.5, iou=0.1)


@functools.cache
def make_optimizer_and_rate():
  """The optimiser and schedule, with a rate of 1e-2 from the first update on."""
  config = recipe('refcoco').optimizer
  config.update(learning_rate=1e-2, warmup_start=1e-2, warmup_steps=0)
  return make_optimizer(config, 100)


def structure_and_state(freeze=''):
  """The small model in train mode, with dropout, before its first update."""
  model = random_model(small_config())
  model.train()
  return make_state(model, make_optimizer_and_rate()[0], freeze_patterns(freeze))


@functools.cache
def train_step(freeze='', seed=0):
  """The compiled step, shared by tests."""
  return make_train_step(
    structure_and_state(freeze)[0],
    *make_optimizer_and_rate(),
    text_forward,
    loss_weights=LOSS,
    ema_limit=0.9997,
    seed=seed,
  )


def to_numpy(weights):
  return {name: np.array(x) for name, x in weights.items()}


@pytest.mark.slow
def test_frozen_parts_keep_their_weights_and_have_no_optimiser_state():
  freeze = 'image_encoder,text_encoder'
  (_, state), step = structure_and_state(freeze), train_step(freeze)
  frozen, params = to_numpy(state.frozen), to_numpy(state.params)
  assert {name.split('.')[0] for name in frozen} == {'image_encoder', 'text_encoder', 'prompt_encoder'}
  assert 'image_encoder.instruction.probs.0.kernel' in params
  moments = sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim)
  assert moments == 2 * sum(x.size for x in params.values())
  for _ in range(2):
    state, _ = step(state, random_batch(2))
  for name, before in frozen.items():
    np.testing.assert_array_equal(state.frozen[name], before, err_msg=name)
  for name in ('text_proj.kernel', 'image_encoder.instruction.probs.1.kernel', 'mask_decoder.iou_token'):
    assert np.abs(state.params[name] - params[name]).max() > 1e-3, name


def test_the_positional_buffer_is_never_trained():
  _, state = structure_and_state()
  assert list(state.frozen) == ['prompt_encoder.pe_layer.gaussian_matrix']


@pytest.mark.slow
@pytest.mark.verifies(
  'Learning rate, clipping, AdamW, weight decay, moving average', against='worked out by hand', within='1e-6'
)
def test_the_moving_average_of_two_updates_by_hand():
  jax.config.update('jax_disable_most_optimizations', True)  # the program that the other tests share
  (structure, state), step = structure_and_state(), train_step()
  start = to_numpy(state.params)
  state, _ = step(state, random_batch(2))
  first = to_numpy(state.params)
  state, metrics = step(state, random_batch(2))
  for name, last in state.params.items():
    average = 0.1 * start[name] + 0.9 * first[name]  # decay (1 + 0) / (10 + 0)
    average = average * 2 / 11 + np.asarray(last) * 9 / 11
    np.testing.assert_allclose(state.ema[name], average, atol=1e-6, err_msg=name)
  assert int(state.step) == 2 and set(metrics) >= {'loss', 'learning_rate', 'grad_norm'}
  averaged = weights_of(averaged_model(structure, state))
  np.testing.assert_array_equal(averaged['text_proj.kernel'][...], state.ema['text_proj.kernel'])


@pytest.mark.slow
def test_dropout_depends_only_on_seed_and_step():
  def loss(seed, step):
    state = structure_and_state()[1]._replace(step=jnp.asarray(step, jnp.int32))
    return float(train_step(seed=seed)(state, random_batch(2))[1]['loss'])

  assert loss(0, 3) == loss(0, 3)
  assert len({loss(0, 3), loss(0, 4), loss(1, 3)}) == 3
