"""A resumed run is bit-identical to an uninterrupted one."""

import json

import grain
import jax
import numpy as np
import pytest

from ditsam_jax.errors import UserError
from ditsam_jax.training.checkpoint import Progress
from tests.devices import run_on_devices
from tests.small_models import random_batch
from tests.training.checkpoints import CONFIG, numbers, open_, save_steps, saved, small_state
from tests.training.test_step import structure_and_state, train_step


def iterator():
  """An endless iterator over shuffled batches."""
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


@pytest.mark.slow
def test_resuming_is_bit_exact(tmp_path):
  whole, losses = train(fresh_state(), iterator(), 5)

  batches = iterator()
  state, first = train(fresh_state(), batches, 2)
  with open_(tmp_path) as checkpoints:
    assert checkpoints.latest_step is None
    checkpoints.save(state, batches, Progress(evaluated=2, best_step=1, best_score=40.5))
  with open_(tmp_path) as checkpoints:
    assert checkpoints.latest_step == 2
    batches = iterator()
    state, progress = checkpoints.restore(fresh_state(), batches)
  assert progress == Progress(evaluated=2, best_step=1, best_score=40.5)
  state, rest = train(state, batches, 3)

  assert first + rest == losses
  assert jax.tree.structure(state) == jax.tree.structure(whole)
  for (path, array), uninterrupted in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(whole)):
    np.testing.assert_array_equal(array, uninterrupted, err_msg=jax.tree_util.keystr(path))


def test_the_state_may_change_while_it_is_saved(tmp_path):
  """The next step donates the buffers of the state being saved."""
  change = jax.jit(lambda state: jax.tree.map(lambda x: x * 0 - 1, state), donate_argnums=0)
  state = small_state(7, size=200_000)
  with open_(tmp_path) as checkpoints:
    checkpoints.save(state, numbers(), Progress())
    jax.block_until_ready(change(state))
  assert resumed_weights(tmp_path, size=200_000) == {7.0}


def resumed_weights(workdir, size):
  with open_(workdir) as checkpoints:
    state, _ = checkpoints.restore(small_state(0, size), numbers())
  return set(np.unique(state.params['a.kernel']))


def test_the_most_recent_checkpoints_and_the_best_are_kept(tmp_path):
  save_steps(tmp_path, 1, 2, 2, 3)
  assert saved(tmp_path) == ['2', '3']
  save_steps(tmp_path, 4, 5, 6, progress=Progress(best_step=2, best_score=1.0))
  assert saved(tmp_path) == ['2', '5', '6']
  save_steps(tmp_path, 7, progress=Progress(best_step=6, best_score=2.0), keep=1)
  assert saved(tmp_path) == ['6', '7']


def test_on_a_tie_the_earlier_score_is_the_best():
  progress = Progress()
  assert [progress.improved(step, score) for step, score in [(1, 3.0), (2, 3.0), (3, 5.0), (4, float('nan'))]] == [
    True,
    False,
    True,
    False,
  ]
  assert (progress.best_step, progress.best_score) == (3, 5.0)


def test_a_checkpoint_of_another_config_is_refused(tmp_path):
  save_steps(tmp_path, 1)
  with open_(tmp_path, config={**CONFIG, 'seed': 4, 'log_every': 7}) as checkpoints:
    with pytest.raises(UserError, match=r'to another config \(config.seed was 3, is 4\)'):
      checkpoints.restore(small_state(0), numbers())


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
  save_steps(tmp_path, 1)
  with open_(tmp_path) as checkpoints, pytest.raises(UserError, match='cannot be read') as error:
    checkpoints.restore(small_state(0, size=65), numbers())
  assert '\n' not in str(error.value)


RESHARDED = """
import sys
from pathlib import Path
import grain
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from ditsam_jax.training.checkpoint import Checkpoints, Progress
from ditsam_jax.training.fingerprint import weights_sha256
from tests.training.checkpoints import numbers, small_state

def sharded(state, devices, spec):
  mesh = Mesh(np.asarray(jax.devices()[:np.prod(devices)]).reshape(devices), ('fsdp', 'tensor'))
  return jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, spec if x.ndim == 2 else P())), state)

state = sharded(small_state(5), (4, 2), P('fsdp', 'tensor'))
assert state.params['a.kernel'].addressable_shards[0].data.shape == (16, 4)
with Checkpoints(Path(sys.argv[1]), 1, {}) as checkpoints:
  checkpoints.save(state, numbers(), Progress())
prints = {weights_sha256(params=state.params)}
for devices, spec, shape in [((2, 4), P('tensor', None), (16, 8)), ((1, 1), P(), (64, 8)), ((8, 1), P('fsdp'), (8, 8))]:
  target = sharded(small_state(0), devices, spec)
  abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), target)
  for wanted in (target, abstract):
    with Checkpoints(Path(sys.argv[1]), 1, {}) as checkpoints:
      restored, _ = checkpoints.restore(wanted, numbers())
    weight = restored.params['a.kernel']
    assert weight.sharding == target.params['a.kernel'].sharding
    assert weight.addressable_shards[0].data.shape == shape
    prints.add(weights_sha256(params=restored.params))
print(len(prints), int(restored.step))
"""


@pytest.mark.multiprocess
def test_restoring_to_another_sharding_is_bit_exact(tmp_path):
  assert run_on_devices(RESHARDED, 8, tmp_path).split() == ['1', '5']


def test_the_content_of_run_json(tmp_path):
  save_steps(tmp_path, 4)
  run = json.loads((tmp_path / 'checkpoints' / '4' / 'run.json').read_text())
  assert run['step'] == 4 and run['config'] == CONFIG and run['random_state'] == {'seed': 3, 'step': 4}
  assert set(run) == {'step', 'random_state', 'position', 'progress', 'config'}
