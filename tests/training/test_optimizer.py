"""Schedule, clipping and moving average follow the release's recipe, worked out by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ditsam_jax.config import recipe
from ditsam_jax.training.optimizer import (
  clip_by_global_norm,
  ema_decay,
  make_optimizer,
  schedule,
)


@pytest.mark.verifies(
  'Learning rate, clipping, AdamW, weight decay, moving average', against='worked out by hand', within='1e-6'
)
def test_the_schedule_is_a_linear_warm_up_and_a_cosine_decay():
  rate = schedule(1e-3, start=1e-7, end=1e-6, warmup_steps=4, total_steps=12)
  expected = {
    0: 1e-7,
    1: 1e-7 + (1e-3 - 1e-7) / 4,
    3: 1e-7 + 0.75 * (1e-3 - 1e-7),
    4: 1e-3,
    6: 1e-6 + 0.5 * (1e-3 - 1e-6) * (1 + math.cos(math.pi / 4)),
    8: (1e-3 + 1e-6) / 2,
    12: 1e-6,
    20: 1e-6,
  }
  for step, value in expected.items():
    assert float(rate(step)) == pytest.approx(value, abs=1e-9), step


def test_without_warm_up_the_first_update_uses_the_peak_rate():
  assert float(schedule(1e-3, start=1e-7, end=0.0, warmup_steps=0, total_steps=10)(0)) == pytest.approx(1e-3)


@pytest.mark.verifies(
  'Learning rate, clipping, AdamW, weight decay, moving average', against='worked out by hand', within='1e-6'
)
@pytest.mark.parametrize(
  'gradients, factor',
  [
    ({'a': [3.0], 'b': [0.0, 4.0]}, 0.5 / (5 + 1e-6)),  # global norm 5
    ({'a': [0.3], 'b': [0.0, 0.0]}, 1.0),
  ],
)
def test_clipping_uses_the_global_norm(gradients, factor):
  clip = clip_by_global_norm(0.5)
  gradients = {name: jnp.asarray(g) for name, g in gradients.items()}
  clipped, _ = clip.update(gradients, clip.init(gradients))
  for name, g in gradients.items():
    np.testing.assert_allclose(clipped[name], g * factor, rtol=1e-6)


def test_the_ema_decay_grows_to_its_limit():
  decays = [float(ema_decay(jnp.asarray(n), 0.9)) for n in (0, 1, 8, 80, 81, 1000)]
  assert decays == pytest.approx([1 / 10, 2 / 11, 9 / 18, 81 / 90, 0.9, 0.9])


@pytest.mark.verifies(
  'Learning rate, clipping, AdamW, weight decay, moving average', against='worked out by hand', within='1e-6'
)
def test_adam_by_hand():
  """Two updates of one weight, with gradients below the clipping threshold."""
  config = recipe('refcoco').optimizer
  config.update(learning_rate=0.1, warmup_start=0.1, min_learning_rate=0.1, warmup_steps=0)
  optimizer, _ = make_optimizer(config, 10)
  params = {'kernel': jnp.asarray([1.0])}
  state = optimizer.init(params)
  weight, m, v = 1.0, 0.0, 0.0
  for n, gradient in enumerate((0.1, -0.05), start=1):
    m, v = 0.9 * m + 0.1 * gradient, 0.98 * v + 0.02 * gradient**2
    weight -= 0.1 * (m / (1 - 0.9**n)) / (math.sqrt(v / (1 - 0.98**n)) + 1e-9)
    updates, state = optimizer.update({'kernel': jnp.asarray([gradient])}, state, params)
    params = optax.apply_updates(params, updates)
    assert float(params['kernel'][0]) == pytest.approx(weight, rel=1e-6)


@pytest.mark.slow
def test_weight_decay_applies_to_matrices_only():
  config = recipe('refcoco').optimizer
  config.update(learning_rate=0.1, warmup_start=0.1, min_learning_rate=0.1, warmup_steps=0, weight_decay=0.5)
  optimizer, _ = make_optimizer(config, 10)
  params = {'a.kernel': jnp.ones((2, 2)), 'a.bias': jnp.ones(2)}
  nothing = {name: jnp.zeros_like(x) for name, x in params.items()}
  updates, _ = optimizer.update(nothing, optimizer.init(params), params)
  np.testing.assert_allclose(updates['a.kernel'], -0.1 * 0.5)
  np.testing.assert_array_equal(updates['a.bias'], 0.0)


def test_muon_updates_are_orthogonal_and_of_adams_magnitude():
  """Newton-Schulz brings all singular values close to one; the update's root mean square is then 0.2 lr."""
  config = recipe('refcoco').optimizer
  config.update(name='muon', learning_rate=0.1, warmup_start=0.1, min_learning_rate=0.1, warmup_steps=0, clip_norm=0.0)
  optimizer, _ = make_optimizer(config, 10)
  rng = np.random.default_rng(0)
  params = {'a.kernel': jnp.zeros((16, 24)), 'a.bias': jnp.zeros(24)}
  gradients = {name: jnp.asarray(rng.normal(size=x.shape), jnp.float32) for name, x in params.items()}
  updates, _ = jax.jit(optimizer.update)(gradients, optimizer.init(params), params)
  values = np.linalg.svd(np.asarray(updates['a.kernel']), compute_uv=False) / (0.1 * 0.2 * math.sqrt(24))
  assert values.min() > 0.5 and values.max() < 1.5
  np.testing.assert_allclose(updates['a.bias'], -0.1 * np.sign(gradients['a.bias']), rtol=1e-5)  # Adam's first update
