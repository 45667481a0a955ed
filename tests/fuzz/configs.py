"""Configs: names, Python files with arbitrary contents, changes on the command line."""

import functools
import json
import random
from pathlib import Path

from ml_collections import ConfigDict

from ditsam_jax.config import checks, files, lengths
from ditsam_jax.config.recipes import TABLE
from tests.fuzz.mutations import NUMBERS, TEXTS, VALUES, damaged, make_odd, odd_path
from tests.fuzz.outcomes import ACCEPTED, Violation, attempt

_ROOT = Path(__file__).parents[2]
_DATA_SETS = ['', ':shapes', ':refcoco', ':refcocog/google', ':nothing', ':', ':shapes:shapes', ':\nerror: forged']
_FILES = {
  'nothing': '',
  'syntax': 'def get_config(:\n',
  'no function': 'x = 1\n',
  'another function': 'def get_conf(): pass\n',
  'ends': 'import sys\nsys.exit({value})\n',
  'interrupts': 'def get_config(d=""): raise {error}\n',
  'returns': 'def get_config(d=""): return {value}\n',
  'arguments': 'def get_config(): return 1\n',
  'recursion': 'def get_config(d=""): return get_config(d)\n',
  'deep': 'x = ' + '(' * 500 + ')' * 500,
  'deep list': 'x = ' + '[' * 100_000,
  'bytes': 'x = "\udcff"\n',
  'zero': 'x = 1\0\n',
  'coding': '# coding: nonsense\n',
  'field': 'from ditsam_jax.config import named\ndef get_config(d="shapes"):\n  c = named("ldit", d)\n'
  '  c.{field} = {value}\n  return c\n',
  'new field': 'from ditsam_jax.config import named\ndef get_config(d="shapes"):\n  c = named("ldit", d)\n'
  '  with c.unlocked():\n    c.{field}x = {value}\n  return c\n',
  'any type': 'from ditsam_jax.config import named\ndef get_config(d="shapes"):\n  c = named("ldit", d)\n'
  '  with c.ignore_type():\n    c.{field} = {value}\n  return c\n',
  'removed': 'from ditsam_jax.config import named\ndef get_config(d="shapes"):\n  c = named("ldit", d)\n'
  '  with c.unlocked():\n    del c.{field}\n  return c\n',
  'itself': 'from ditsam_jax.config import named\ndef get_config(d="shapes"):\n  c = named("ldit", d)\n'
  '  with c.unlocked():\n    c.a = c\n  return c\n',
}  # fmt: skip
_ERRORS = [
  'SystemExit(3)', 'KeyError("a")', 'ValueError("a\\nerror: forged")', 'MemoryError()', 'Exception', 'GeneratorExit()',
  'BaseException("\\x1b[2J")', 'StopIteration', 'OSError(28, "full")',
]  # fmt: skip


def prepare(folder: Path) -> None:
  """Nothing."""


@functools.cache
def _fields() -> list[str]:
  def walk(config, before: str):
    for name, value in config.items():
      yield f'{before}{name}'
      if isinstance(value, ConfigDict):
        yield from walk(value, f'{before}{name}.')

  return list(walk(files.load('ldit:shapes', []), ''))


def case(made: Path, work: Path, chance: random.Random, note) -> str:
  name, changes = chance.choice(list(TABLE)) + chance.choice([':shapes', ':shapes', *_DATA_SETS]), []
  match chance.choice(['changes', 'changes', 'changes', 'file', 'file', 'damaged', 'name', 'odd']):
    case 'changes':
      changes = [_change(chance) for _ in range(chance.choice([1, 1, 1, 2, 3]))]
    case 'file':
      kind = chance.choice(list(_FILES))
      text = _FILES[kind]
      for mark, words in (
        ('{field}', _fields()),
        ('{value}', [repr(v) for v in VALUES if v == v]),
        ('{error}', _ERRORS),
      ):
        text = text.replace(mark, chance.choice(words))
      name = _write(work, text.encode('utf-8', 'surrogateescape'), chance)
    case 'damaged':
      name = _write(work, damaged((_ROOT / 'configs' / 'ldit.py').read_bytes(), chance)[0], chance)
    case 'name':
      name = chance.choice([name[:-1], name.upper(), chance.choice(TEXTS), *TABLE]) + chance.choice(_DATA_SETS)
    case _:
      file = work / 'a.py'
      if chance.random() < 0.5:
        name = odd_path(work, chance)
      else:
        make_odd(file, chance)
        name = str(file)
  note(f'{name[:80]!r} {[change[:100] for change in changes]}')
  outcome, config = attempt(lambda: files.load(name, changes))
  if outcome != ACCEPTED:
    return outcome
  run = checks.check(config)
  json.dumps(json.loads(config.to_json()), allow_nan=False)
  outcome, whole = attempt(lambda: lengths.resolve(config, lambda: 1000))
  if outcome == ACCEPTED and (whole.total_steps < 1 or not 0 <= whole.optimizer.warmup_steps < whole.total_steps):
    raise Violation('wrong result', f'{whole.optimizer.warmup_steps} of {whole.total_steps} steps')
  if run.model != checks.model_config(config):
    raise Violation('wrong result', 'the two checks give different models')
  return outcome


def _write(work: Path, data: bytes, chance: random.Random) -> str:
  file = work / chance.choice(['a.py', 'a.py', 'a\nerror: forged.py', 'a b:c.py'])
  file.write_bytes(data)
  return f'{file}{chance.choice(["", "", ":shapes", *_DATA_SETS])}'


def _change(chance: random.Random) -> str:
  field = chance.choice(_fields())
  match chance.choice(['number', 'number', 'value', 'text', 'field', 'raw', 'deep']):
    case 'number':
      value = str(chance.choice(NUMBERS))
    case 'value':
      value = repr(chance.choice(VALUES))
    case 'text':
      value = chance.choice(TEXTS)
    case 'field':
      at = chance.randrange(len(field))
      return f'{field[:at]}{chance.choice(["", "x", ".", chr(10)])}{field[at + 1 :]}=1'
    case 'raw':
      return chance.choice(
        [field, '=', '', f'{field}', f'{field}==1', f'.{field}=1', '__class__=1', 'model.__init__=1', 'items=1']
      )
    case _:
      value = chance.choice([
        '[' * 5000, '(' * 500 + ')' * 500, '{' * 300 + '}' * 300, '-' * 10_000 + '1', '9' * 5000,
        '1' + '+1' * 20_000, '10**10**10', 'a' * 100_000,
      ])  # fmt: skip
  return f'{field}={value}'
