"""Configs by name and from files; a failing file is reported in one line with its line number."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ditsam_jax.config import files
from ditsam_jax.config.checks import model_config, plain
from ditsam_jax.config.recipes import TABLE
from ditsam_jax.errors import UserError

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs'
NAMED = 'from ditsam_jax.config import named\n'


def refusal(argument, *overrides):
  """The one-line error of `load`."""
  with pytest.raises(UserError) as error:
    files.load(str(argument), list(overrides))
  assert '\n' not in str(error.value)
  return str(error.value)


@pytest.mark.parametrize('data_set', ['', ':shapes', ':refcocog', ':refcocog/google'])
@pytest.mark.parametrize('name', TABLE)
def test_a_name_and_its_file_give_the_same_config(name, data_set):
  if name == 'sam_pretrain' and 'refcoco' in data_set:
    assert refusal(name + data_set) == refusal(f'{CONFIGS / name}.py{data_set}')
    return
  changes = ['init_from=shapes'] if name == 'finetune' else []
  config = files.load(name + data_set, changes)
  assert plain(config) == plain(files.load(f'{CONFIGS / name}.py{data_set}', changes))
  assert model_config(config).text_encoder is not None or config.task == 'prompts'
  assert config.data.dataset == (data_set[1:] or ('shapes' if name == 'sam_pretrain' else 'refcoco'))


def test_every_file_has_a_name_and_documents_its_command():
  assert {path.stem for path in CONFIGS.glob('*.py')} == set(TABLE)
  for name in TABLE:
    assert f'python -m ditsam_jax.train --config={name}' in (CONFIGS / f'{name}.py').read_text()


def test_names_are_found_from_any_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert files.load('edit:shapes', ['seed=3']).seed == 3
  assert files.short_name('edit:shapes') == files.short_name('configs/edit.py:refcocog/google') == 'edit'


@pytest.mark.parametrize(
  'argument, expected',
  [
    ('lditt', ["config 'lditt' is unknown", "did you mean 'ldit'", 'edit', 'sam_text_add_4']),
    ('LDIT:shapes', ["config 'LDIT' is unknown"]),
    ('', ["config '' is unknown"]),
    ('ldit:coco', ["data set 'coco' is unknown", 'refcoco+']),
    ('ldit:refcocog/unc', ["not split by 'unc'", 'umd or google']),
    ('sam_pretrain:refcoco', ['sam_pretrain', 'shapes only', 'torch_to_flax.py']),
    (f'{CONFIGS}/sam_pretrain.py:refcoco', ['sam_pretrain', 'shapes only']),
    (f'{CONFIGS}/lditt.py', ['lditt.py', 'does not exist', 'did you mean', 'ldit.py', 'edit.py']),
    ('/nowhere/at/all.py', ['/nowhere/at/all.py', 'does not exist', 'names are ldit']),
    ('gs://bucket/ldit.py', ['gs:// is not supported', 'gcsfuse']),
  ],
)
def test_unknown_names_list_alternatives(argument, expected):
  message = refusal(argument)
  assert all(part in message for part in expected), message


# name, content, parts of the message
BROKEN = [
  ('syntax', 'def get_config(:\n', [':1: invalid syntax']),
  ('indentation', 'def get_config():\nreturn 1\n', [':2: expected an indented block']),
  ('unclosed', 'x = (1,\n' * 3, [':3: ', 'never closed']),
  ('not_utf8', b'x = "\xff\xfe"\n', ['utf-8', 'expected Python in UTF-8']),
  ('nul', b'x = 1\0\n', ['null bytes']),
  ('binary', os.urandom(32).replace(b'\n', b'') + b'\0\xff', ['.py']),
  ('nested', 'x = ' + '(' * 1000, ['too many nested parentheses']),
  ('deep', 'x = ' + '-' * 200_000 + '1', ['.py']),
  ('empty', '', ['has no function get_config']),
  ('misspelt', 'def get_confg(): pass\n', ["did you mean 'get_confg'"]),
  ('not_callable', 'get_config = 3\n', ['has no function get_config']),
  ('raises', 'def get_config():\n  raise RuntimeError("no\\nluck")\n', [':2: RuntimeError: no luck']),
  ('divides', 'x = 1\n\ny = 1 / 0\n', [':3: ZeroDivisionError']),
  ('exits', 'import sys\nsys.exit(0)\n', [':2: ', 'SystemExit']),
  ('exits_later', 'import sys\ndef get_config():\n  sys.exit("bye")\n', [':3: ', 'SystemExit bye']),
  ('import', 'import nowhere_at_all\n', [":1: ModuleNotFoundError: No module named 'nowhere_at_all'"]),
  ('import_name', 'from ditsam_jax.config import nothing\n', [':1: ImportError']),
  ('recursion', 'def get_config():\n  return get_config()\n', [':2: endless recursion']),
  ('none', 'def get_config():\n  pass\n', ['returned None', 'ConfigDict']),
  ('dict', 'def get_config():\n  return {}\n', ['returned a value of type dict', 'ConfigDict']),
  ('class', 'class get_config: pass\n', ['returned a value of type get_config']),
  ('generator', 'def get_config():\n  yield 1\n', ['returned a value of type generator']),
  (
    'two_arguments',
    'def get_config(a, b): pass\n',
    [':1: get_config cannot be called with nothing', 'missing a required'],
  ),
  (
    'lacking',
    NAMED + 'def get_config():\n  c = named("ldit")\n  del c.optimizer\n  return c\n',
    ['config.optimizer is missing', 'learning_rate'],
  ),
  (
    'absent',
    NAMED + 'def get_config():\n  c = named("ldit")\n  c.data = None\n  return c\n',
    ['config.data is None', 'batch_size'],
  ),
  (
    'bare',
    'from ml_collections import ConfigDict\ndef get_config():\n  return ConfigDict()\n',
    ['config.task is missing', 'text, prompts, interactive'],
  ),
  (
    'unknown',
    NAMED + 'def get_config():\n  c = named("ldit")\n  c.optimizer.learnin_rate = 1.0\n  return c\n',
    ["config.optimizer has no field 'learnin_rate'", "did you mean 'learning_rate'"],
  ),
  (
    'type',
    NAMED + 'def get_config():\n  c = named("ldit")\n  c.seed = "no"\n  return c\n',
    [':4: TypeError', 'seed'],
  ),
  (
    'value',
    NAMED + 'def get_config():\n  c = named("ldit")\n  c.optimizer.beta1 = 2.0\n  return c\n',
    ['config.optimizer.beta1 is 2.0', 'expected a number from 0 to below 1'],
  ),
  (
    'object',
    NAMED + 'class X:\n  __repr__ = None\ndef get_config():\n  c = named("ldit")\n  c.update(seed=None)\n'
    '  c.seed = X()\n  return c\n',
    ['config.seed is a X'],
  ),
  (
    'both',
    NAMED + 'def get_config():\n  c = named("ldit")\n  c.total_steps = 5\n  return c\n',
    ['config.total_steps is 5', 'config.epochs is 40'],
  ),
]


@pytest.mark.parametrize('name, content, expected', BROKEN, ids=[name for name, *_ in BROKEN])
def test_a_broken_file_gives_one_line_with_its_line_number(tmp_path, name, content, expected):
  file = tmp_path / f'{name}.py'
  file.write_bytes(content if isinstance(content, bytes) else content.encode())
  message = refusal(file)
  assert (name == 'both' or message.startswith(str(file))) and all(part in message for part in expected), message
  assert not list(tmp_path.glob('__pycache__')) and len(message) < 1000


def test_folders_pipes_and_large_files_are_refused_unread(tmp_path):
  os.mkfifo(tmp_path / 'fifo.py')
  (tmp_path / 'dangling.py').symlink_to(tmp_path / 'nothing')
  (tmp_path / 'big.py').write_text('#' * 2_000_000)
  assert 'is not a regular file' in refusal(tmp_path / 'fifo.py')
  assert 'is not a regular file' in refusal('/dev/zero')
  assert 'is a folder' in refusal(tmp_path)
  assert 'does not exist' in refusal(tmp_path / 'dangling.py')
  assert '2,000,000 bytes' in refusal(tmp_path / 'big.py')


def test_a_data_set_that_get_config_does_not_accept_is_refused(tmp_path):
  (tmp_path / 'mine.py').write_text(NAMED + '\ndef get_config():\n  return named("edit", "shapes")\n')
  assert files.load(str(tmp_path / 'mine.py'), []).model.fusion == 'e2e'
  assert "mine.py:3: get_config cannot be called with 'shapes' after the colon" in refusal(f'{tmp_path}/mine.py:shapes')
  (tmp_path / 'needs.py').write_text(NAMED + 'def get_config(data_set):\n  return named("edit", data_set)\n')
  assert 'nothing after the colon' in refusal(tmp_path / 'needs.py')


def test_files_may_freeze_their_config_and_define_dataclasses(tmp_path):
  (tmp_path / 'mine.py').write_text(
    'from __future__ import annotations\nimport dataclasses\nfrom ml_collections import FrozenConfigDict\n'
    + NAMED
    + '\n'
    '@dataclasses.dataclass\nclass Mine:\n  x: int = 1\n\n'
    'def get_config():\n  return FrozenConfigDict(named("ldit", "shapes"))\n'
  )
  assert files.load(str(tmp_path / 'mine.py'), ['seed=7']).seed == 7


@pytest.mark.multiprocess
def test_the_command_exits_with_status_2_and_one_line(tmp_path):
  (tmp_path / 'mine.py').write_text('def get_config():\n  return 1 / 0\n')
  ended = subprocess.run(
    [sys.executable, '-m', 'ditsam_jax.train', f'--config={tmp_path}/mine.py', f'--workdir={tmp_path}/run'],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert ended.returncode == 2
  assert ended.stderr == f'error: {tmp_path}/mine.py:2: ZeroDivisionError: division by zero\n'
  assert not (tmp_path / 'run').exists()
