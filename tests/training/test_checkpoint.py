"""A run that stops and resumes is, bit by bit, the run that did not stop; nothing but whole checkpoints is resumed."""

import json
import os
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ditsam_jax.errors import UserError
from ditsam_jax.training import manifest
from ditsam_jax.training.checkpoint import Checkpoints, Progress
from ditsam_jax.training.step import TrainState
from tests.devices import run_on_devices
from tests.small_models import random_batch
from tests.training.test_step import structure_and_state, train_step

CONFIG = {'seed': 3, 'optimizer': {'name': 'adam'}}


def iterator():
  """Shuffled batches that go on for ever."""
  data = grain.MapDataset.range(6).shuffle(seed=1).repeat()
  return iter(data.map(lambda i: random_batch(2, seed=int(i))).to_iter_dataset())


def numbers():
  """A quick iterator, for tests that train nothing."""
  return iter(grain.MapDataset.range(100).to_iter_dataset())


def small_state(step, size=64):
  """A train state of two arrays that differ from step to step."""
  weights = {'a.kernel': jnp.full((size, 8), float(step)), 'b.bias': jnp.arange(8.0) + step}
  average = jax.tree.map(jnp.copy, weights)
  return TrainState(jnp.asarray(step, jnp.int32), weights, average, {'count': jnp.asarray(step)}, {}, jnp.zeros(2, int))


def open_(workdir, keep=2, config=CONFIG, **more):
  return Checkpoints(workdir, keep, config, **more)


def saved(workdir):
  return sorted(path.name for path in (workdir / 'checkpoints').iterdir())


def save_steps(workdir, *steps, progress=Progress(), **more):
  """One checkpoint a step, all of them whole."""
  with open_(workdir, **more) as checkpoints:
    batches = numbers()
    for step in steps:
      next(batches)
      checkpoints.save(small_state(step), batches, progress)


def resumed(workdir):
  """Step and first weight of the checkpoint that a new process would go on from, and what comes next."""
  with open_(workdir) as checkpoints:
    batches = numbers()
    state, _ = checkpoints.restore(small_state(0), batches)
  return int(state.step), float(state.params['a.kernel'][0, 0]), next(batches)


def train(state, batches, count):
  losses = []
  for _ in range(count):
    state, metrics = train_step()(state, next(batches))
    losses.append(float(metrics['loss']))
  return state, losses


def fresh_state():
  return structure_and_state()[1]


@pytest.mark.slow
def test_resuming_is_invisible(tmp_path):
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


def test_the_state_may_change_while_it_is_written(tmp_path):
  """The next step is given the buffers of the state that is being saved."""
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


def test_the_last_ones_and_the_best_stay(tmp_path):
  save_steps(tmp_path, 1, 2, 2, 3)
  assert saved(tmp_path) == ['2', '3']
  save_steps(tmp_path, 4, 5, 6, progress=Progress(best_step=2, best_score=1.0))
  assert saved(tmp_path) == ['2', '5', '6']
  save_steps(tmp_path, 7, progress=Progress(best_step=6, best_score=2.0), keep=1)
  assert saved(tmp_path) == ['6', '7']


def test_the_first_of_equally_good_scores_is_the_best():
  progress = Progress()
  assert [progress.improved(step, score) for step, score in [(1, 3.0), (2, 3.0), (3, 5.0), (4, float('nan'))]] == [
    True,
    False,
    True,
    False,
  ]
  assert (progress.best_step, progress.best_score) == (3, 5.0)


def largest_file(folder):
  return max((path for path in folder.rglob('*') if path.is_file()), key=lambda path: path.stat().st_size)


def flip(checkpoint):
  file = largest_file(checkpoint / 'state')
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 1
  file.write_bytes(data)


def truncate(checkpoint):
  file = largest_file(checkpoint / 'state')
  os.truncate(file, file.stat().st_size // 2)


def change_position(checkpoint):
  text = (checkpoint / 'run.json').read_text()
  (checkpoint / 'run.json').write_text(text.replace('"step": 2', '"step": 3'))


@pytest.mark.parametrize(
  'damage, told',
  [
    (flip, 'has changed: its checksum differs'),
    (truncate, 'bytes instead of'),
    (lambda checkpoint: shutil.rmtree(checkpoint / 'state'), 'is missing'),
    (lambda checkpoint: (checkpoint / manifest.NAME).unlink(), 'manifest.json is missing'),
    (lambda checkpoint: (checkpoint / manifest.NAME).write_text('{"files": {'), 'damaged or not JSON'),
    (change_position, 'run.json has changed'),
  ],
  ids=['flipped bit', 'truncated', 'deleted', 'no manifest', 'half a manifest', 'other position'],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, capfd, damage, told):
  save_steps(tmp_path, 1, 2)
  damage(tmp_path / 'checkpoints' / '2')
  assert resumed(tmp_path) == (1, 1.0, 1)
  (line,) = [line for line in capfd.readouterr().err.splitlines() if 'damaged' in line]
  assert 'checkpoints/2 ' in line and told in line
  save_steps(tmp_path, 2)  # the same step again, as a resumed run does
  capfd.readouterr()
  assert resumed(tmp_path) == (2, 2.0, 1)
  assert capfd.readouterr().err == ''


def replaced(make):
  """Damage: a file gives way to something else."""

  def damage(path):
    path.unlink()
    make(path)

  return damage


DAMAGE = {
  'a flipped bit': lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 16]) + path.read_bytes()[1:]),
  'a byte less': lambda path: os.truncate(path, path.stat().st_size - 1),
  'emptied': lambda path: os.truncate(path, 0),
  'removed': lambda path: path.unlink(),
  'a folder': replaced(lambda path: path.mkdir()),
  'a pipe': replaced(os.mkfifo),
  'a device': replaced(lambda path: path.symlink_to('/dev/zero')),
  'a link to nothing': replaced(lambda path: path.symlink_to('nowhere')),
}


def test_every_file_of_a_checkpoint_is_missed_whatever_becomes_of_it(tmp_path, capfd):
  save_steps(tmp_path / 'run', 1, 2)
  files = [path.relative_to(tmp_path) for path in (tmp_path / 'run/checkpoints/2').rglob('*') if path.is_file()]
  assert len(files) > 8
  with open_(tmp_path / 'run') as checkpoints:  # one manager for all: what it holds is set by `_whole`
    for file in files:
      for name, damage in DAMAGE.items():
        if (tmp_path / file).stat().st_size == 0 and name in ('a flipped bit', 'a byte less', 'emptied'):
          continue
        shutil.copytree(tmp_path / 'run', tmp_path / 'kept')
        damage(tmp_path / file)
        assert checkpoints._whole() == [1], f'{file}: {name}'
        (line,) = capfd.readouterr().err.splitlines()
        assert 'checkpoints/2 is damaged' in line and file.name in line, f'{file}: {name}: {line}'
        shutil.rmtree(tmp_path / 'run')
        (tmp_path / 'kept').rename(tmp_path / 'run')


def rewrite(checkpoint, change):
  """Changes run.json, and the manifest with it: damage that no checksum shows."""
  run = json.loads((checkpoint / 'run.json').read_text())
  content = change(run)
  (checkpoint / 'run.json').write_text(content if isinstance(content, str) else json.dumps(run))
  manifest.write(checkpoint)


@pytest.mark.parametrize(
  'change',
  [
    lambda run: '[' * 100_000,
    lambda run: '[]',
    lambda run: 'null',
    lambda run: run.update(step='2'),
    lambda run: run.update(step=10**400),
    lambda run: run.pop('position') and None,
    lambda run: run.update(position=[1]),
    lambda run: run.update(progress={'evaluated': -1}),
    lambda run: run.update(progress={'evaluated': 0, 'best_score': 'high'}),
    lambda run: run.update(progress={'evaluated': 0, 'other\nerror: pwned': 1}),
    lambda run: run.update(config=None),
    lambda run: run.update(position={'next_index': 'first'}),
  ],
)
def test_a_run_json_that_cannot_be_is_damage_too(tmp_path, capfd, change):
  save_steps(tmp_path, 1, 2)
  rewrite(tmp_path / 'checkpoints' / '2', change)
  assert resumed(tmp_path) == (1, 1.0, 1)
  (line,) = capfd.readouterr().err.splitlines()
  assert 'checkpoints/2 ' in line and 'trying the previous one' in line, line


@pytest.mark.parametrize(
  'content',
  [
    '[' * 100_000,
    '{}',
    '{"files": []}',
    '{"files": {}}',
    '{"files": {"run.json": 7}}',
    '{"files": {"run.json": [1, null]}}',
    '{"files": {"run.json": [1e999, ""]}}',
    '{"files": {"run.json": [1, ""], "../1/run.json": [1, ""]}}',
    '{"files": {"/dev/zero": [0, ""], "run.json": [1, ""]}}',
    '\ud800',
  ],
)
def test_a_manifest_that_cannot_be_is_damage_too(tmp_path, capfd, content):
  save_steps(tmp_path, 1, 2)
  (tmp_path / 'checkpoints/2/manifest.json').write_text(content, errors='surrogatepass')
  assert resumed(tmp_path) == (1, 1.0, 1)
  (line,) = capfd.readouterr().err.splitlines()
  assert 'checkpoints/2 is damaged' in line


def test_arrays_that_only_orbax_finds_broken_are_passed_over_too(tmp_path, capfd):
  save_steps(tmp_path, 1, 2)
  truncate(tmp_path / 'checkpoints' / '2')
  manifest.write(tmp_path / 'checkpoints' / '2')
  assert resumed(tmp_path) == (1, 1.0, 1)
  (line,) = capfd.readouterr().err.splitlines()
  assert 'checkpoints/2 cannot be read' in line


def test_what_is_no_checkpoint_is_none(tmp_path, capfd):
  save_steps(tmp_path, 1)
  folder = tmp_path / 'checkpoints'
  (folder / '2').write_text('a file of that name')
  (folder / '3.writing').write_text('')
  for name in ('9' * 30, '007', 'notes', '\u0663'):
    (folder / name).mkdir()
  assert resumed(tmp_path) == (1, 1.0, 1)
  assert 'checkpoints/2 is damaged (it is not a folder)' in capfd.readouterr().err
  save_steps(tmp_path, 2)
  assert resumed(tmp_path) == (2, 2.0, 1)


def test_no_whole_checkpoint_at_all_is_refused(tmp_path):
  save_steps(tmp_path, 1, 2)
  for number in '12':
    flip(tmp_path / 'checkpoints' / number)
  with pytest.raises(UserError, match='no checkpoint in .* is intact') as error:
    open_(tmp_path)
  assert '\n' not in str(error.value) and 'delete' in str(error.value)
  assert saved(tmp_path) == ['1', '2']  # they are left for whoever can mend them


@pytest.mark.parametrize('manifest_too', [False, True])
def test_what_a_process_left_that_died_before_the_end_is_removed(tmp_path, capfd, manifest_too):
  """It counts as not begun, even where Orbax was done with it: the one before is whole."""
  save_steps(tmp_path, 1, 2)
  folder = tmp_path / 'checkpoints'
  os.rename(folder / '2', folder / '2.writing')
  if not manifest_too:
    (folder / '2.writing' / manifest.NAME).unlink()
  shutil.copytree(folder / '1', folder / '0.deleting')
  assert resumed(tmp_path) == (1, 1.0, 1)
  assert saved(tmp_path) == ['1'] and 'damaged' not in capfd.readouterr().err


def test_a_checkpoint_of_another_config_is_refused(tmp_path):
  save_steps(tmp_path, 1)
  with open_(tmp_path, config={**CONFIG, 'seed': 4, 'log_every': 7}) as checkpoints:
    with pytest.raises(UserError, match=r'to another config \(config.seed was 3, is 4\)'):
      checkpoints.restore(small_state(0), numbers())


def test_a_checkpoint_of_another_model_is_refused_in_one_line(tmp_path):
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
from tests.training.test_checkpoint import numbers, small_state

def laid_out(state, devices, spec):
  mesh = Mesh(np.asarray(jax.devices()[:np.prod(devices)]).reshape(devices), ('fsdp', 'tensor'))
  return jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, spec if x.ndim == 2 else P())), state)

state = laid_out(small_state(5), (4, 2), P('fsdp', 'tensor'))
assert state.params['a.kernel'].addressable_shards[0].data.shape == (16, 4)
with Checkpoints(Path(sys.argv[1]), 1, {}) as checkpoints:
  checkpoints.save(state, numbers(), Progress())
prints = {weights_sha256(params=state.params)}
for devices, spec, shape in [((2, 4), P('tensor', None), (16, 8)), ((1, 1), P(), (64, 8)), ((8, 1), P('fsdp'), (8, 8))]:
  target = laid_out(small_state(0), devices, spec)
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
def test_another_layout_over_devices_gets_the_same_bits(tmp_path):
  assert run_on_devices(RESHARDED, 8, tmp_path).split() == ['1', '5']


@pytest.fixture
def small_files():
  """Files beyond 100 kB cannot be written, as if the disk were full."""
  before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
  yield
  resource.setrlimit(resource.RLIMIT_FSIZE, before)
  signal.signal(signal.SIGXFSZ, handler)


def random_state(step):
  """800 kB that do not compress."""
  values = jnp.asarray(np.random.default_rng(step).normal(size=(100_000,)), jnp.float32)
  return small_state(step)._replace(params={'w': values}, ema={'w': values})


@pytest.fixture
def full_disk():
  """A file system of a megabyte, on which a checkpoint of 0.8 MB fits once."""
  folder = Path(os.environ.get('TMPDIR', '/tmp')) / f'full_disk_{os.getpid()}'
  folder.mkdir()
  command = ['mount', '-t', 'tmpfs', '-o', 'size=1400k', 'tmpfs', folder]
  if shutil.which('mount') is None or subprocess.run(command, capture_output=True).returncode:
    folder.rmdir()
    pytest.skip('file systems cannot be mounted here')
  yield folder
  subprocess.run(['umount', '--lazy', folder], check=True)
  folder.rmdir()


@pytest.mark.parametrize('on_failure', ['continue', 'stop'])
def test_a_full_disk_is_told_and_old_checkpoints_stay_whole(full_disk, capfd, on_failure):
  with open_(full_disk, on_failure=on_failure) as checkpoints:
    checkpoints.save(random_state(1), numbers(), Progress())
    checkpoints.wait()
    checkpoints.save(random_state(2), numbers(), Progress())
    if on_failure == 'stop':
      with pytest.raises(UserError, match='the checkpoint of step 2 could not be written.* free some space'):
        checkpoints.wait()
      return
    checkpoints.wait()
    told = capfd.readouterr().err
    assert 'the checkpoint of step 2 could not be written' in told and 'step 1 is intact' in told, told
    assert checkpoints.latest_step == 1 and saved(full_disk) == ['1']
    assert manifest.problem(full_disk / 'checkpoints' / '1', needed='run.json') is None
    shutil.rmtree(full_disk / 'checkpoints' / '1')  # someone makes room
    checkpoints.save(random_state(3), numbers(), Progress())
  assert saved(full_disk) == ['3'] and manifest.problem(full_disk / 'checkpoints' / '3', needed='run.json') is None


def test_files_that_cannot_grow_are_told_like_a_full_disk(tmp_path, capfd, small_files):
  with open_(tmp_path) as checkpoints:
    checkpoints.save(small_state(1), numbers(), Progress())
    checkpoints.save(random_state(2), numbers(), Progress())
    checkpoints.wait()
    assert 'the checkpoint of step 2 could not be written' in capfd.readouterr().err
    checkpoints.save(small_state(3), numbers(), Progress())
  assert saved(tmp_path) == ['1', '3'] and resumed(tmp_path)[0] == 3


def test_what_is_in_a_checkpoint_beside_arrays(tmp_path):
  save_steps(tmp_path, 4)
  run = json.loads((tmp_path / 'checkpoints' / '4' / 'run.json').read_text())
  assert run['step'] == 4 and run['config'] == CONFIG and run['random_state'] == {'seed': 3, 'step': 4}
  assert set(run) == {'step', 'random_state', 'position', 'progress', 'config'}
