"""The commands in a bucket: a killed and resumed run ends as on a disk, and its model is evaluated and used there."""

import json
import subprocess
import sys
import time

import pytest

from ditsam_jax import evaluate, predict
from tests.buckets import bucket, store  # noqa: F401
from tests.devices import ROOT, hosts
from tests.test_train import SMALL, run
from tests.training.test_bucket_runs import complete

# Fixtures of tests.buckets are used by name.
# ruff: noqa: F811

OFTEN = ('--config.checkpoint_every=2', '--config.final_split=val')


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  return tmp_path_factory.mktemp('data')


@pytest.fixture(scope='module')
def on_disk(data_dir, tmp_path_factory):
  """The workdir of an undisturbed run on a disk."""
  workdir = tmp_path_factory.mktemp('disk') / 'run'
  assert run(data_dir, workdir, *OFTEN) == 0
  return workdir


def arguments(data_dir, workdir):
  options = [f'--config={ROOT / "configs/ldit.py"}:shapes', f'--workdir={workdir}', *SMALL, *OFTEN]
  return [*options, f'--config.data.data_dir={data_dir}']


def read(workdir, name='metrics.json'):
  return json.loads((workdir / name).read_text())


def losses(workdir):
  lines = [json.loads(line) for line in (workdir / 'train_log.jsonl').read_text().splitlines()]
  return {line['step']: line['train/loss'] for line in lines if 'train/loss' in line}


@pytest.mark.multiprocess
def test_a_killed_run_resumes_and_its_model_is_evaluated_and_used(bucket, data_dir, on_disk, tmp_path, capfd):
  workdir = bucket / 'run'
  first = subprocess.Popen([sys.executable, '-m', 'ditsam_jax.train', *arguments(data_dir, workdir)], cwd=ROOT)
  try:
    deadline = time.monotonic() + 240
    while not complete(workdir):
      assert first.poll() is None and time.monotonic() < deadline
      time.sleep(0.05)
  finally:
    first.kill()
    first.wait()
  assert not (workdir / 'metrics.json').exists()
  assert run(data_dir, workdir, *OFTEN) == 0
  printed = capfd.readouterr().err
  assert 'taking over from process' in printed and 'resumed at step' in printed
  assert read(workdir)['weights_sha256'] == read(on_disk)['weights_sha256']
  assert losses(workdir) == losses(on_disk) and len(losses(workdir)) == 3

  found = []
  for place in (workdir, on_disk):
    assert evaluate.main([f'--checkpoint={place}', '--split=val', f'--data-dir={data_dir}', '--batch-size=16']) == 0
    file = tmp_path / f'{len(found)}.json'
    what = [f'--image={ROOT / "docs/scene.png"}', '--text=the circle', f'--json={file}', '--no-pictures']
    assert predict.main([f'--checkpoint={place}', *what]) == 0
    origin = {'key', 'made_by'}
    record = {name: value for name, value in json.loads(file.read_text()).items() if name not in origin}
    found.append((read(place, 'evaluation-val/metrics.json')['release'], record))
  assert found[0] == found[1]


@pytest.mark.multiprocess
def test_two_hosts_train_in_a_bucket(bucket, data_dir, on_disk):
  workdir = bucket / 'run'
  with hosts(2, 'ditsam_jax.train', *arguments(data_dir, workdir)) as both:
    outputs = [host.communicate(timeout=300) for host in both]
  assert [host.returncode for host in both] == [0, 0], outputs
  assert losses(workdir) == pytest.approx(losses(on_disk), rel=1e-4, abs=1e-5)
  assert complete(workdir) == [4, 6]
