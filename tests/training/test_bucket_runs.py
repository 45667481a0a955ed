"""The promises of a workdir hold in a bucket: resuming is bit-exact after a kill at any request; damage is skipped."""

import json
import multiprocessing
import os
import random
import signal
import time

import numpy as np
import pytest

from ditsam_jax.errors import UserError
from ditsam_jax.storage import bucket as objects
from ditsam_jax.storage import lease, manifest
from ditsam_jax.storage.lease import Lease
from ditsam_jax.training.checkpoint import Progress
from ditsam_jax.training.workdir import Workdir
from tests.buckets import Fault, bucket, store  # noqa: F401
from tests.training.bucket_lives import CONFIG, live
from tests.training.checkpoints import numbers, open_, resumed, save_steps, small_state

# Fixtures of tests.buckets are used by name.
# ruff: noqa: F811


def complete(workdir):
  """The numbers of the complete checkpoints."""
  names = objects.entries(workdir / 'checkpoints')
  return sorted(int(name.partition('.')[0]) for name in names if name.endswith(f'/{manifest.NAME}'))


def objects_of(workdir, step):
  start = f'{step}.'
  return {
    workdir / 'checkpoints' / name: entry
    for name, entry in objects.entries(workdir / 'checkpoints').items()
    if name.startswith(start)
  }


FAULTS = ('503', 'lost', 'cut', 'slow', 'hang')


def arrays(method, path):
  """Uploads by TensorStore; gcsfs uses other types."""
  return method == 'POST' and 'uploadType=media' in path


@pytest.mark.multiprocess
def test_ten_kills_at_any_request_change_nothing(bucket, store, tmp_path):
  """Each process is killed before or after the store carries out one of its requests; others fail, also of uploads."""
  undisturbed = live(str(tmp_path / 'undisturbed'))
  workdir, errors = bucket / 'run', tmp_path / 'errors.txt'
  # A process that has imported everything is forked for each life, which saves seconds.
  processes = multiprocessing.get_context('forkserver')
  processes.set_forkserver_preload(['tests.training.bucket_lives'])
  chance = random.Random(5)
  environment = store.environment | {'TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS': '2'}
  resumed_at, failed = [], []
  for number in range(10):
    resumed_at.append(max(complete(workdir), default=0))
    process = processes.Process(target=live, args=(str(workdir), environment, str(errors)))

    def end():
      os.kill(process.pid, signal.SIGKILL)

    # The first 20 or so requests claim the workdir, and others restore a checkpoint; saving one takes 80 to 100.
    others_fail = number % 2
    life = chance.randrange(130 if others_fail else 30, 230)  # in requests
    start, fail_after = store.requests, chance.randrange(30, life)
    late = lambda method, path: store.requests >= start + life
    later = lambda method, path: store.requests >= start + fail_after
    store.faults = [Fault(chance.choice(['before', 'after']), late, times=1, call=end)]
    if others_fail:
      failed.append(Fault(FAULTS[number // 2], arrays, times=1, seconds=0.5))
      failed.append(Fault(FAULTS[number // 2 - 2], later, times=1, seconds=0.5))
      store.faults += failed[-2:]
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL, errors.read_text() if errors.exists() else number
  store.faults = []
  process = processes.Process(target=live, args=(str(workdir), environment, str(errors)))
  process.start()
  process.join()
  assert process.exitcode == 0, errors.read_text()
  assert [fault.seen for fault in failed] == [1] * len(failed)
  assert resumed_at == sorted(resumed_at) and len(set(resumed_at)) > 3, resumed_at
  with open_(workdir, config=CONFIG) as checkpoints:
    state, _ = checkpoints.restore(small_state(0), numbers())
  assert int(state.step) == CONFIG['total_steps']
  for name, weights in undisturbed.items():
    np.testing.assert_array_equal(np.asarray(state.params[name]), weights, err_msg=name)
  assert (workdir / 'train_log.jsonl').read_bytes() == (tmp_path / 'undisturbed' / 'train_log.jsonl').read_bytes()
  assert errors.read_text().count('taking over from process') == 10
  assert complete(workdir) == [27, 30]


@pytest.mark.slow
def test_checkpoints_are_complete_when_their_manifest_is_written(bucket):
  save_steps(bucket / 'run', 1, 2, 3)
  assert complete(bucket / 'run') == [2, 3] and resumed(bucket / 'run') == (3, 3.0, 3)
  objects.remove([path for path in objects_of(bucket / 'run', 3) if path.name == manifest.NAME])
  assert resumed(bucket / 'run') == (2, 2.0, 2)
  assert not objects_of(bucket / 'run', 3)  # what a killed process leaves is removed


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(bytes(data))


@pytest.mark.slow
@pytest.mark.parametrize(
  'damage, expected',
  [
    (flip, 'has changed: its checksum differs'),
    (lambda path: path.write_bytes(path.read_bytes()[:-1]), 'bytes instead of'),
    (lambda path: path.unlink(), 'is missing'),
  ],
  ids=['flipped bit', 'truncated', 'deleted'],
)
def test_damaged_checkpoints_are_named_and_skipped(bucket, capfd, damage, expected):
  save_steps(bucket / 'run', 1, 2)
  largest = max(objects_of(bucket / 'run', 2).items(), key=lambda item: item[1].size)[0]
  damage(largest)
  assert resumed(bucket / 'run') == (1, 1.0, 1)
  (line,) = [line for line in capfd.readouterr().err.splitlines() if 'damaged' in line]
  assert 'checkpoints/2 is damaged' in line and expected in line
  save_steps(bucket / 'run', 2)  # the resumed run saves it again
  capfd.readouterr()
  assert resumed(bucket / 'run') == (2, 2.0, 1) and 'damaged' not in capfd.readouterr().err
  assert len({path.parts[4] for path in objects_of(bucket / 'run', 2)}) == 1  # the damaged one is gone


@pytest.mark.slow
def test_a_store_that_fails_for_long_leaves_older_checkpoints_intact(bucket, store, capfd, monkeypatch):
  monkeypatch.setattr('gcsfs.retry.asyncio.sleep', _no_sleep)
  with open_(bucket / 'run') as checkpoints:
    checkpoints.save(small_state(1), numbers(), Progress())
    checkpoints.wait()
    store.faults = [Fault('503', lambda method, path: method == 'POST' and 'manifest.json' not in path and _json(path))]
    checkpoints.save(small_state(2), numbers(), Progress())
    checkpoints.wait()
    assert 'the checkpoint of step 2 could not be written' in capfd.readouterr().err
    store.faults = []
    checkpoints.save(small_state(3), numbers(), Progress())
  assert complete(bucket / 'run') == [1, 3] and resumed(bucket / 'run')[0] == 3


async def _no_sleep(seconds):
  pass


def _json(path):
  return 'uploadType=multipart' in path


def claim(path, config=CONFIG):
  with Workdir(path) as workdir:
    workdir.check_place()
    workdir.claim(config)


def test_one_run_a_workdir(bucket):
  with Workdir(bucket / 'run') as workdir:
    workdir.claim(CONFIG)
    with pytest.raises(UserError, match=f"workdir 'gs://.*/run' is in use by process {os.getpid()} on .*; wait for it"):
      claim(bucket / 'run')
    workdir.still_ours()
  claim(bucket / 'run')
  assert json.loads((bucket / 'run/config.json').read_text()) == CONFIG


def elsewhere(monkeypatch):
  """From now on, this process seems to run on another machine."""
  monkeypatch.setattr(lease, '_identity', lambda: {'machine': 'other', 'pid': 1, 'started': '0'})


def test_a_claim_that_is_renewed_is_refused_from_another_machine(bucket, monkeypatch, capsys):
  with Lease(bucket / 'lock', 'workdir x', seconds=1.2):
    elsewhere(monkeypatch)
    with pytest.raises(UserError, match='workdir x is in use by process'):
      Lease(bucket / 'lock', 'workdir x').__enter__()
  assert capsys.readouterr().err.count('waiting up to 1 s') == 1


def test_a_dead_claim_is_taken_over_when_it_expires(bucket, monkeypatch, capsys):
  dead = Lease(bucket / 'lock', 'workdir x', seconds=0.8)
  dead._claim()  # and is never renewed
  elsewhere(monkeypatch)
  with Lease(bucket / 'lock', 'workdir x'):
    with pytest.raises(OSError, match='workdir x was taken over by process'):
      dead.check()
  assert 'workdir x: taking over from process' in capsys.readouterr().err


def test_a_paused_holder_notices_that_it_was_replaced(bucket, monkeypatch):
  lost = []
  with Lease(bucket / 'lock', 'workdir x', seconds=0.4, lost=lambda: lost.append(1)) as paused:
    version = objects.read_version(bucket / 'lock')[1]
    with paused._writing:  # it does not renew
      objects.write(bucket / 'lock', b'{"owner": "process 7 on other"}', version=version)
    deadline = 100
    while not lost and (deadline := deadline - 1):
      paused._released.wait(0.1)
    assert lost


@pytest.mark.slow
def test_a_renewal_without_an_answer_is_repeated_before_the_lease_ends(bucket, store, monkeypatch, capsys):
  monkeypatch.setattr(lease, '_ANSWER', 0.5)
  monkeypatch.setattr(lease, '_PAUSE', 0.1)
  with Lease(bucket / 'lock', 'workdir x', seconds=6):
    version = objects.read_version(bucket / 'lock')[1]
    store.faults = [Fault('hang', writes, times=1), Fault('swallowed', writes, times=1)]
    wait_until(lambda: all(fault.seen for fault in store.faults))
    wait_until(lambda: objects.read_version(bucket / 'lock')[1] != version)
    elsewhere(monkeypatch)
    with pytest.raises(UserError, match='workdir x is in use by process'):
      Lease(bucket / 'lock', 'workdir x').__enter__()
  assert 'warning' not in capsys.readouterr().err


@pytest.mark.slow
def test_a_lease_that_cannot_be_renewed_is_reported_before_it_ends(bucket, store, monkeypatch):
  monkeypatch.setattr(lease, '_ANSWER', 0.5)
  monkeypatch.setattr(lease, '_PAUSE', 0.1)
  lost, said = [], []
  monkeypatch.setattr(lease, 'say', said.append)
  with Lease(bucket / 'lock', 'workdir x', seconds=4, lost=lambda: lost.append(1)) as held:
    store.faults = [Fault('hang', writes)]
    started = time.monotonic()
    with pytest.raises(OSError, match='workdir x: the claim cannot be renewed .the store did not answer in time'):
      held.check()
    assert time.monotonic() - started < 4
    wait_until(lambda: said)
    assert said[0].startswith('warning: workdir x: the claim could not be renewed for')
    store.faults = []
    held.check()
    assert not lost


def writes(method, path):
  return method == 'POST'


def wait_until(condition, seconds=20):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.05)
