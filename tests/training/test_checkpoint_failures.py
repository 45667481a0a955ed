"""A checkpoint that cannot be written is reported, and older ones stay intact."""

import os
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from ditsam_jax.errors import UserError
from ditsam_jax.parallel import save_barrier
from ditsam_jax.storage import manifest
from ditsam_jax.training.checkpoint import Progress
from tests.devices import hosts
from tests.training import failing_host
from tests.training.checkpoints import numbers, open_, resumed, saved, small_state


@pytest.fixture
def small_files():
  """Limits files to 100 kB, as if the disk were full."""
  before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
  yield
  resource.setrlimit(resource.RLIMIT_FSIZE, before)
  signal.signal(signal.SIGXFSZ, handler)


def random_state(step):
  """A train state of 800 kB that does not compress."""
  values = jnp.asarray(np.random.default_rng(step).normal(size=(100_000,)), jnp.float32)
  return small_state(step)._replace(params={'w': values}, ema={'w': values})


@pytest.fixture
def full_disk():
  """A file system of 1.4 MB, which holds one checkpoint of 0.8 MB."""
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
def test_a_full_disk_is_reported_and_old_checkpoints_stay_intact(full_disk, capfd, on_failure):
  with open_(full_disk, on_failure=on_failure) as checkpoints:
    checkpoints.save(random_state(1), numbers(), Progress())
    checkpoints.wait()
    checkpoints.save(random_state(2), numbers(), Progress())
    if on_failure == 'stop':
      with pytest.raises(UserError, match='the checkpoint of step 2 could not be written.* free some space'):
        checkpoints.wait()
      return
    checkpoints.wait()
    printed = capfd.readouterr().err
    assert 'the checkpoint of step 2 could not be written' in printed and 'step 1 is intact' in printed, printed
    assert checkpoints.latest_step == 1 and saved(full_disk) == ['1']
    assert manifest.problem(full_disk / 'checkpoints' / '1', needed='run.json') is None
    shutil.rmtree(full_disk / 'checkpoints' / '1')  # someone frees space
    checkpoints.save(random_state(3), numbers(), Progress())
  assert saved(full_disk) == ['3'] and manifest.problem(full_disk / 'checkpoints' / '3', needed='run.json') is None


def test_file_size_limits_are_reported_like_a_full_disk(tmp_path, capfd, small_files):
  with open_(tmp_path) as checkpoints:
    checkpoints.save(small_state(1), numbers(), Progress())
    checkpoints.save(random_state(2), numbers(), Progress())
    checkpoints.wait()
    assert 'the checkpoint of step 2 could not be written' in capfd.readouterr().err
    checkpoints.save(small_state(3), numbers(), Progress())
  assert saved(tmp_path) == ['1', '3'] and resumed(tmp_path)[0] == 3


def test_what_a_failed_save_writes_late_is_removed_at_the_end(tmp_path, small_files):
  late = tmp_path / 'checkpoints' / '2.writing' / 'state'
  with open_(tmp_path) as checkpoints:
    checkpoints.save(random_state(2), numbers(), Progress())
    checkpoints.wait()
    checkpoints.save(small_state(3), numbers(), Progress())
    checkpoints.wait()
    late.mkdir(parents=True)
    (late / 'array').write_text('written by a thread that did not know')
  assert saved(tmp_path) == ['3']


def test_a_run_that_was_replaced_leaves_the_checkpoint_that_the_other_writes(tmp_path, capfd):
  def still_ours():
    raise OSError('workdir was taken over')

  with open_(tmp_path, still_ours=still_ours) as checkpoints:
    (tmp_path / 'checkpoints' / '9.writing').mkdir(parents=True)  # by the other run
    checkpoints.save(small_state(1), numbers(), Progress())
    checkpoints.wait()
    assert 'could not be written' in capfd.readouterr().err
  assert saved(tmp_path) == ['9.writing']


@pytest.mark.multiprocess
def test_all_hosts_learn_that_one_could_not_write(tmp_path):
  """Without the barrier in save_barrier.py, the other host would wait for 20 minutes."""
  assert save_barrier._SUCCEEDED <= 60_000  # ms; replaced in the processes below
  with hosts(2, 'tests.training.failing_host', str(tmp_path / 'run'), '1') as both:
    outputs = [host.communicate(timeout=240) for host in both]
  assert [host.returncode for host in both] == [0, 0], outputs
  for printed, _ in outputs:
    lines = [line.split() for line in printed.splitlines() if line[0].isdecimal()]
    assert [(step, latest) for step, _, latest in lines] == [('1', '1'), ('2', '1'), ('3', '3')], outputs
    assert float(lines[1][1]) < failing_host.SECONDS + 20, outputs
  assert 'the checkpoint of step 2 could not be written' in outputs[0][1]
  assert saved(tmp_path / 'run') == ['1', '3']
