"""A workdir is tied to one config, and to one process while that runs."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ditsam_jax.config import files, lengths
from ditsam_jax.config.run import RunConfig
from ditsam_jax.errors import UserError
from ditsam_jax.fields import find
from ditsam_jax.training.workdir import FREE, OF_A_HOST, Workdir, differences

CONFIG = {'seed': 0, 'total_steps': 10, 'log_every': 5, 'data': {'threads': 1, 'batch_size': 4}}


def claim(path, config=CONFIG):
  with Workdir(path) as workdir:
    workdir.claim(config)


def trained(path):
  """A workdir with a checkpoint."""
  claim(path)
  (path / 'checkpoints' / '5').mkdir(parents=True)


@pytest.mark.parametrize('content', ['[' * 100_000, '{"seed": ', '\ud800', None])
def test_a_damaged_config_is_named(tmp_path, content):
  trained(tmp_path / 'run')
  file = tmp_path / 'run' / 'config.json'
  file.unlink()
  if content is None:
    os.mkfifo(file)
  else:
    file.write_text(content, errors='surrogatepass')
  with pytest.raises(UserError, match=r'run/config\.json'):
    claim(tmp_path / 'run')


def test_only_fields_that_do_not_affect_the_result_may_change(tmp_path):
  trained(tmp_path / 'run')
  faster = {**CONFIG, 'log_every': 1, 'mesh': {'fsdp': 8}, 'data': {**CONFIG['data'], 'threads': 8}}
  claim(tmp_path / 'run', faster)
  assert json.loads((tmp_path / 'run' / 'config.json').read_text()) == faster
  with pytest.raises(UserError, match=r'config.data.batch_size was 4, is 8; config.total_steps was 10, is 20\)'):
    claim(tmp_path / 'run', {**faster, 'total_steps': 20, 'data': {**faster['data'], 'batch_size': 8}})
  assert json.loads((tmp_path / 'run' / 'config.json').read_text()) == faster


@pytest.mark.parametrize('left', ['', 'checkpoints', 'checkpoints/5.writing', 'tensorboard', 'train_log.jsonl'])
@pytest.mark.parametrize('damaged', [False, True])
def test_a_run_with_nothing_to_resume_does_not_bind_its_folder(tmp_path, left, damaged):
  claim(tmp_path / 'run')
  (tmp_path / 'run' / left).mkdir(parents=True, exist_ok=True)
  if damaged:
    (tmp_path / 'run' / 'config.json').write_text('[' * 100_000)
  claim(tmp_path / 'run', {**CONFIG, 'seed': 1})
  assert json.loads((tmp_path / 'run' / 'config.json').read_text())['seed'] == 1


@pytest.mark.parametrize('left', ['checkpoints/5', 'model', 'best'])
def test_checkpoints_and_results_bind_the_folder(tmp_path, left):
  claim(tmp_path / 'run')
  (tmp_path / 'run' / left).mkdir(parents=True)
  with pytest.raises(UserError, match='config.seed was 0, is 1'):
    claim(tmp_path / 'run', {**CONFIG, 'seed': 1})


def test_an_added_field_is_a_difference():
  assert differences(CONFIG, {**CONFIG, 'ema': 0.5}) == ['config.ema was None, is 0.5']


def test_a_run_of_an_earlier_version_can_be_resumed():
  """Its config lacks epochs and warmup_share, and contains fields that no longer exist."""
  config = files.load('ldit:shapes', [])
  now = lengths.resolve(config, lambda: 0).to_json()
  before = json.loads(json.dumps(now)) | {'keep_best': True}
  del before['epochs'], before['optimizer']['warmup_share']
  assert differences(before, now) == []
  assert differences(before, now | {'total_steps': 60}) == ['config.total_steps was 1000, is 60']


def test_hosts_must_agree_on_what_a_resumed_run_may_change():
  other = CONFIG | {'log_every': 7, 'data': {'threads': 9, 'batch_size': 4}}
  assert differences(CONFIG, other) == []
  assert differences(CONFIG, other, free=OF_A_HOST) == ['config.log_every was 5, is 7']
  assert set(OF_A_HOST) < set(FREE)


def test_free_fields_exist():
  for field in FREE:
    assert find(RunConfig, field.removeprefix('config.'), 'config')


def test_moved_fields_do_not_prevent_resuming():
  """In earlier versions, the attention implementation was a field of the model."""
  before = {'config': {}, 'model': {'attention': 'auto', 'fusion': 'e2e'}}
  assert differences(before, {'config': {}, 'attention': 'xla', 'model': {'fusion': 'e2e'}}) == []


def test_only_temporary_files_of_killed_processes_are_removed(tmp_path):
  (tmp_path / '.best.writing-17' / 'weights').mkdir(parents=True)
  (tmp_path / 'best').mkdir()
  (tmp_path / f'.best.retired-{"0a" * 16}').mkdir()
  (tmp_path / 'validation').mkdir()
  for name in ('', 'validation/'):
    for file in (f'.writing-{"0a" * 16}', '.notes', 'notes.17'):
      (tmp_path / name / file).write_text('')
  claim(tmp_path)
  kept = {'.notes', 'notes.17'}
  assert {path.name for path in tmp_path.iterdir()} == {'best', 'validation', *kept, '.lock', 'config.json'}
  assert {path.name for path in (tmp_path / 'validation').iterdir()} == kept


def test_a_model_that_a_killed_process_was_replacing_is_kept(tmp_path):
  (tmp_path / f'.model.retired-{"0a" * 16}' / 'weights').mkdir(parents=True)
  claim(tmp_path)
  assert (tmp_path / 'model' / 'weights').is_dir()


HOLDER = """
import sys, time
from pathlib import Path
from ditsam_jax.training.workdir import Workdir
with Workdir(Path(sys.argv[1])) as workdir:
  workdir.claim({})
  print('claimed', flush=True)
  time.sleep(600)
"""


def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path):
  process = subprocess.Popen(
    [sys.executable, '-c', HOLDER, tmp_path], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
  )
  try:
    assert process.stdout.readline() == 'claimed\n'
    with pytest.raises(UserError, match=f'in use by process {process.pid} on '):
      claim(tmp_path, {})
  finally:
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
  claim(tmp_path, {})
