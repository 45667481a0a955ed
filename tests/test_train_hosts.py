"""Training on several hosts: losses equal one host's, no host waits for a dead one, other host counts can resume."""

import json
import signal
import time

import pytest

from tests.devices import hosts
from tests.test_train import ROOT, SMALL, run

STEPS = [
  '--config.total_steps=20',
  '--config.checkpoint_every=4',
  '--config.eval_every=10',
  '--config.log_every=1',
  '--config.data.batch_size=8',
  '--config.final_split=val',
  '--config.model.mask_threshold=0.1',
]


def arguments(data_dir, workdir):
  return [
    f'--config={ROOT / "configs/ldit.py"}:shapes',
    f'--workdir={workdir}',
    f'--config.data.data_dir={data_dir}',
    *SMALL,
    *STEPS,
  ]


def wait_for(path, seconds=240):
  deadline = time.time() + seconds
  while not path.exists():
    assert time.time() < deadline, f'{path} was never written'
    time.sleep(0.02)


def logged(workdir):
  """Losses and scores by name and step."""
  lines = [json.loads(line) for line in (workdir / 'train_log.jsonl').read_text().splitlines()]
  found = {(name, line['step']): line[name] for line in lines for name in ('train/loss', 'val/mIoU') if name in line}
  assert len(found) == len(lines)  # no duplicates
  return found


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  return tmp_path_factory.mktemp('data')


@pytest.fixture(scope='module')
def alone(data_dir, tmp_path_factory):
  """The workdir of a run on one host."""
  workdir = tmp_path_factory.mktemp('alone') / 'run'
  assert run(data_dir, workdir, *STEPS) == 0
  return workdir


@pytest.mark.multiprocess
def test_four_hosts_resume_after_one_of_two_died_and_match_one(alone, data_dir, tmp_path):
  workdir = tmp_path / 'run'
  with hosts(2, 'ditsam_jax.train', *arguments(data_dir, workdir)) as both:
    wait_for(workdir / 'checkpoints' / '4')
    both[1].kill()
    died = time.time()
    _, errors = both[0].communicate(timeout=60)
    assert time.time() - died < 60
  assert both[0].returncode == 1
  assert 'host 1 of 2 died' in errors and 'Traceback' not in errors
  with hosts(
    4, 'ditsam_jax.train', *arguments(data_dir, workdir), '--config.mesh.data=2', '--config.mesh.fsdp=2'
  ) as four:
    outputs = [host.communicate(timeout=600) for host in four]
  assert [host.returncode for host in four] == [0] * 4, outputs
  assert 'resumed at step' in outputs[0][1] and 'mIoU' in outputs[0][0]
  assert not any('mIoU' in out or 'resumed' in errors for out, errors in outputs[1:])
  expected = logged(alone)
  assert logged(workdir) == pytest.approx(expected, rel=1e-4, abs=1e-5) and expected['val/mIoU', 10] > 1
  ours, theirs = (json.loads((folder / 'metrics.json').read_text()) for folder in (workdir, alone))
  assert ours['samples'] == theirs['samples'] and ours['release']['mIoU'] == pytest.approx(
    theirs['release']['mIoU'], abs=0.1
  )


@pytest.mark.multiprocess
def test_preempting_one_host_stops_all_cleanly(data_dir, tmp_path):
  workdir = tmp_path / 'run'
  with hosts(2, 'ditsam_jax.train', *arguments(data_dir, workdir), '--config.total_steps=2000') as both:
    wait_for(workdir / 'checkpoints' / '4')
    both[1].send_signal(signal.SIGTERM)
    outputs = [host.communicate(timeout=120) for host in both]
  assert [host.returncode for host in both] == [0, 0], outputs
  assert 'all saved; rerun the command to resume' in outputs[0][1]
  stopped_at = int(outputs[0][1].split('stopped at step ')[1].split()[0])
  assert (workdir / 'checkpoints' / str(stopped_at) / 'manifest.json').exists()
