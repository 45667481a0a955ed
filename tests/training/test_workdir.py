"""A workdir belongs to one config and, while it runs, to one process."""

import functools
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ditsam_jax.errors import UserError
from ditsam_jax.training.config import recipe
from ditsam_jax.training.workdir import FREE, Workdir, differences

CONFIG = {'seed': 0, 'total_steps': 10, 'log_every': 5, 'data': {'threads': 1, 'batch_size': 4}}


def claim(path, config=CONFIG):
  with Workdir(path) as workdir:
    workdir.claim(config)


def test_fields_that_change_the_result_are_named_and_others_may_change(tmp_path):
  claim(tmp_path / 'run')
  faster = {**CONFIG, 'log_every': 1, 'mesh': {'fsdp': 8}, 'data': {**CONFIG['data'], 'threads': 8}}
  claim(tmp_path / 'run', faster)
  assert json.loads((tmp_path / 'run' / 'config.json').read_text()) == faster
  with pytest.raises(UserError, match=r'config.data.batch_size was 4, is 8; config.total_steps was 10, is 20\)'):
    claim(tmp_path / 'run', {**faster, 'total_steps': 20, 'data': {**faster['data'], 'batch_size': 8}})
  assert json.loads((tmp_path / 'run' / 'config.json').read_text()) == faster


def test_a_new_field_is_a_difference():
  assert differences(CONFIG, {**CONFIG, 'ema': 0.5}) == ['config.ema was None, is 0.5']


def test_free_fields_are_fields():
  for field in FREE:
    assert functools.reduce(lambda node, name: node[name], field.split('.')[1:], recipe('refcoco')) is not None


def test_a_run_that_an_earlier_version_began_goes_on():
  """The attention's implementation was a field of the model then."""
  before = {'config': {}, 'model': {'attention': 'auto', 'fusion': 'e2e'}}
  assert differences(before, {'config': {}, 'attention': 'xla', 'model': {'fusion': 'e2e'}}) == []


def test_what_killed_processes_had_not_finished_goes_and_nothing_else(tmp_path):
  (tmp_path / '.best.writing-17' / 'weights').mkdir(parents=True)
  (tmp_path / 'best').mkdir()
  unfinished = '.model.retired-3', f'.writing-{"0a" * 16}'
  for name in (*unfinished, '.notes', 'notes.17'):
    (tmp_path / name).write_text('')
  claim(tmp_path)
  assert {path.name for path in tmp_path.iterdir()} == {'best', '.notes', 'notes.17', '.lock', 'config.json'}


HOLDER = """
import sys, time
from pathlib import Path
from ditsam_jax.training.config import recipe
from ditsam_jax.training.workdir import Workdir
with Workdir(Path(sys.argv[1])) as workdir:
  workdir.claim({})
  print('claimed', flush=True)
  time.sleep(600)
"""


def test_a_second_process_is_refused_until_the_first_is_gone_however_it_went(tmp_path):
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
