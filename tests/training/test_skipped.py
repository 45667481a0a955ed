"""Updates with a non-finite loss or gradient are skipped and counted; too many in a row stop the run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ditsam_jax.errors import UserError
from ditsam_jax.training.skipped import SkippedUpdates
from ditsam_jax.training.step import TrainState, update_if_finite
from tests.small_models import random_batch
from tests.training.test_step import structure_and_state, train_step


def with_nan(batch):
  image = batch['image'].copy()
  image[0, 3, 5, 1] = np.nan
  return {**batch, 'image': image}


def on_host(state):
  return {jax.tree_util.keystr(path): np.array(x) for path, x in jax.tree_util.tree_leaves_with_path(state)}


@pytest.mark.slow
def test_a_batch_with_nan_only_changes_the_counters():
  step = train_step()
  state, _ = step(structure_and_state()[1], random_batch(2))
  before = on_host(state)
  state, metrics = step(state, with_nan(random_batch(2, seed=1)))
  after = on_host(state)
  assert not np.isfinite(metrics['loss'])
  for name in set(before) - {'.step', '.skipped'}:
    np.testing.assert_array_equal(after[name], before[name], err_msg=name)
  assert after['.step'] == 2 and after['.skipped'].tolist() == [1, 1]
  assert (metrics['skipped'], metrics['skipped_in_a_row']) == (1, 1)

  state, metrics = step(state, random_batch(2, seed=2))
  assert np.isfinite(metrics['loss']) and (metrics['skipped'], metrics['skipped_in_a_row']) == (1, 0)
  last = on_host(state)
  assert (last[".params['text_proj.kernel']"] != before[".params['text_proj.kernel']"]).any()
  # Two updates were applied, so the EMA decay and the optimiser's count are those of two.
  decay = np.float32(2 / 11)
  np.testing.assert_allclose(
    last[".ema['text_proj.kernel']"],
    before[".ema['text_proj.kernel']"] * decay + last[".params['text_proj.kernel']"] * (1 - decay),
    rtol=1e-5,
    atol=1e-7,
  )


@pytest.mark.parametrize(
  'loss, norm, kept',
  [(1.0, 2.0, True), (np.nan, 2.0, False), (1.0, np.nan, False), (np.inf, 2.0, False), (1.0, np.inf, False)],
)
def test_loss_and_gradient_must_both_be_finite(loss, norm, kept):
  old = TrainState(jnp.int32(4), {'w': jnp.ones(2)}, {'w': jnp.ones(2)}, {'m': jnp.ones(2)}, {}, jnp.asarray([3, 2]))
  new = old._replace(params={'w': jnp.full(2, np.nan)}, ema={'w': jnp.zeros(2)}, opt_state={'m': jnp.full(2, 0.5)})
  grads = {'w': jnp.full(2, 0.5)}

  @jax.jit
  def step(old, loss, norm):
    def update(state, grads):
      return state._replace(params=new.params, ema=new.ema, opt_state={'m': grads['w']})

    return update_if_finite(update, old, grads, loss, norm)

  state = step(old, loss, norm)
  assert int(state.step) == 5 and state.skipped.tolist() == ([3, 0] if kept else [4, 3])
  for part in ('params', 'ema', 'opt_state'):
    jax.tree.map(np.testing.assert_array_equal, getattr(state, part), getattr(new if kept else old, part))


def test_skipping_takes_no_copy_of_the_state():
  """The compiled step needs at most a tenth of the weights' bytes more than one that always updates."""
  weights = {name: jnp.ones((256, 256)) for name in 'abcdefgh'}
  size = sum(x.nbytes for x in weights.values())
  state = TrainState(jnp.int32(0), weights, weights, weights, {}, jnp.zeros(2, jnp.int32))

  def temporaries(choose):
    def step(state, x):
      loss, grads = jax.value_and_grad(
        lambda params: jnp.sum(functools.reduce(lambda h, w: jnp.tanh(h @ w), params.values(), x))
      )(state.params)
      norm = optax.tree.norm(grads)

      def update(state, grads):
        moments = jax.tree.map(lambda m, g: 0.9 * m + g / norm, state.opt_state, grads)
        params = jax.tree.map(lambda p, m: p - 0.1 * m, state.params, moments)
        ema = jax.tree.map(lambda e, p: 0.9 * e + 0.1 * p, state.ema, params)
        return state._replace(params=params, ema=ema, opt_state=moments)

      return update_if_finite(update, state, grads, loss, norm) if choose else update(state, grads)

    compiled = jax.jit(step, donate_argnums=0).lower(state, jnp.ones((4, 256))).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporaries(True) <= temporaries(False) + size / 10


def watched(watcher, in_a_row):
  for step, number in enumerate(in_a_row, 1):
    watcher.watch(step, {'image': np.full(3, step, np.float32)}, {'skipped_in_a_row': jnp.int32(number)})
  watcher.look()


def test_too_many_in_a_row_stop_the_run_and_save_the_batch(tmp_path, capfd):
  watched(SkippedUpdates(tmp_path, 3), [0, 1, 2, 0, 1, 2, 0])
  assert [line.split(':')[0] for line in capfd.readouterr().err.splitlines()] == ['step 2', 'step 5']
  with pytest.raises(UserError, match='not finite for 3 steps in a row, up to step 4') as error:
    watched(SkippedUpdates(tmp_path, 3), [0, 1, 2, 3])
  assert '\n' not in str(error.value) and 'skipped_batch_4.npz' in str(error.value)
  with np.load(tmp_path / 'skipped_batch_4.npz') as batch:
    np.testing.assert_array_equal(batch['image'], np.full(3, 4, np.float32))
  assert [path.name for path in tmp_path.iterdir()] == ['skipped_batch_4.npz']
