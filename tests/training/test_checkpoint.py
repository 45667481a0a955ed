"""A run that stops and resumes is, bit by bit, the run that did not stop."""

import shutil

import grain
import jax
import numpy as np
import pytest

from ditsam_jax.command_line import UserError
from ditsam_jax.training.checkpoint import Checkpoints
from tests.small_models import random_batch
from tests.training.test_step import structure_and_state, train_step


def iterator():
  """Shuffled batches that go on for ever."""
  data = grain.MapDataset.range(6).shuffle(seed=1).repeat()
  return iter(data.map(lambda i: random_batch(2, seed=int(i))).to_iter_dataset())


def train(state, batches, count):
  losses = []
  for _ in range(count):
    state, metrics = train_step()(state, next(batches))
    losses.append(float(metrics['loss']))
  return state, losses


def fresh_state():
  return structure_and_state()[1]


def test_resuming_is_invisible(tmp_path):
  whole, losses = train(fresh_state(), iterator(), 5)

  batches = iterator()
  state, first = train(fresh_state(), batches, 2)
  with Checkpoints(tmp_path, 2) as checkpoints:
    assert checkpoints.latest_step is None
    checkpoints.save(state, batches)
  with Checkpoints(tmp_path, 2) as checkpoints:
    assert checkpoints.latest_step == 2
    batches = iterator()
    state = checkpoints.restore(fresh_state(), batches)
  state, rest = train(state, batches, 3)

  assert first + rest == losses
  assert jax.tree.structure(state) == jax.tree.structure(whole)
  for (path, resumed), uninterrupted in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(whole)):
    np.testing.assert_array_equal(resumed, uninterrupted, err_msg=jax.tree_util.keystr(path))


def test_old_checkpoints_go_and_a_saved_step_is_not_saved_again(tmp_path):
  state, batches = fresh_state(), iterator()
  with Checkpoints(tmp_path, 2) as checkpoints:
    for number in (1, 2, 2, 3):
      checkpoints.save(state._replace(step=np.int32(number)), batches)
  assert sorted(path.name for path in (tmp_path / 'checkpoints').iterdir() if path.is_dir()) == ['2', '3']


def test_a_damaged_checkpoint_is_named_with_the_way_out(tmp_path):
  with Checkpoints(tmp_path, 2) as checkpoints:
    checkpoints.save(fresh_state()._replace(step=np.int32(7)), iterator())
  shutil.rmtree(tmp_path / 'checkpoints' / '7' / 'state')
  with Checkpoints(tmp_path, 2) as checkpoints, pytest.raises(UserError) as error:
    checkpoints.restore(fresh_state(), iterator())
  message = str(error.value)
  assert '\n' not in message and 'checkpoints/7' in message and 'delete' in message
