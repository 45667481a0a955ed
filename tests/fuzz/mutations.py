"""Random damage to bytes, JSON, paths and files, chosen by a seeded generator."""

import copy
import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CANARY = 'executed'  # a file of this name appears if part of an input was executed
_EXPRESSION = f"__import__('os').system('touch {CANARY}')"

TEXTS = [
  '', ' ', '\n', '\0', 'a\0b', '\ud800', '\udcff', 'ok\nerror: forged', '\x1b[31mred\x1b[2J', '\u202eright to left',
  '\x9b2J', '\u2028', 'x' * 100_000, '\u00e9' * 6000, 'e\u0301\u0301\u0301', '\U0001f469\u200d\U0001f4bb', '\u732b',
  '[UNK]', '[PAD] [SEP]', '##s', 'None', 'nan', '1e999', '%s%n{0}', _EXPRESSION, f'$(touch {CANARY})',
  f'`touch {CANARY}`', '../../etc/passwd', '~nobody',
]  # fmt: skip
NUMBERS = [
  0, -1, 1, 2, 3, 7, 255, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63, 2**64, -(2**63), 10**40, 10**400, True, False, 0.5,
  -0.0, 1e-45, 3e38, 1e300, 5e-324, float('nan'), float('inf'), float('-inf'),
]  # fmt: skip
RUNS = [
  {'size': [48, 64], 'counts': [2**62] * 4 + [48 * 64]}, {'size': [48, 64], 'counts': [3073]},
  {'size': [48, 64], 'counts': 'o'}, {'size': [48, 64], 'counts': '0' * 50}, {'size': [2**40, 2**40], 'counts': [1]},
  {'size': [48, 64], 'counts': [-1, 3073]}, {'size': None, 'counts': None}, {'size': [48, 64], 'counts': [1e999]},
  {'counts': [3072]}, {'size': [48, 64], 'counts': [2**63, 2**63]},
]  # fmt: skip
CONTAINERS = [
  [], {}, [[]], [None], {'a': 1}, [1] * 5, [-1], [[1, 2, 3, 4, 5, 6]], [[float('nan')] * 6], [[1e300] * 6], [['a'] * 6],
  [[1] * 7], *RUNS
]  # fmt: skip
VALUES = [None, *NUMBERS, *TEXTS, *CONTAINERS]

_WORDS = [b'\0\0\0\0', b'\xff\xff\xff\xff', b'\x7f\xff\xff\xff', b'\xff\xff\xff\x7f', b'\0\1\0\0', b'\x80\0\0\0']
# Text in place of a value that a JSON encoder would not produce.
_RAW = [
  'NaN', 'Infinity', '1e999', '-1e999', '"\\ud800"', '9' * 5000, '[' * 100_000, '{"a":' * 100_000,
  '[' * 5000 + ']' * 5000, '{"a":1,"a":2}', '', ',', 'tru', "'a'", '"\x01"', '"', '// no', '\ufeff1',
]  # fmt: skip


def damaged(data: bytes, chance: random.Random, other: bytes = b'') -> tuple[bytes, str]:
  """Returns a damaged copy of `data` and a description of the damage; bytes of `other` may be spliced in."""
  data = bytearray(data)
  at = chance.randrange(len(data) or 1)
  match chance.choice(
    ['flip', 'flip', 'flips', 'head', 'cut', 'insert', 'repeat', 'number', 'zeros', 'splice', 'append']
  ):
    case 'flip' if data:
      data[at] ^= 1 << chance.randrange(8)
      what = f'bit of byte {at}'
    case 'flips' if data:
      for _ in range(10):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
      what = 'ten bits'
    case 'head' if data:
      for _ in range(chance.choice([1, 3, 8])):
        data[chance.randrange(min(len(data), 120))] = chance.randrange(256)
      what = 'bytes of the head'
    case 'cut':
      del data[at:]
      what = f'cut at {at}'
    case 'insert':
      data[at:at] = chance.randbytes(chance.randrange(1, 40))
      what = f'bytes inserted at {at}'
    case 'repeat':
      data[at:at] = data[at : at + chance.randrange(1, 200)]
      what = f'bytes repeated at {at}'
    case 'number':
      data[at : at + 4] = chance.choice(_WORDS)
      what = f'an extreme number at {at}'
    case 'zeros':
      size = chance.choice([1, 16, 512])
      data[at : at + size] = bytes(min(size, len(data) - at))
      what = f'zeros at {at}'
    case 'splice' if other:
      start = chance.randrange(len(other))
      data[at : at + 64] = other[start : start + chance.randrange(1, 200)]
      what = f'part of another file at {at}'
    case _:
      data += chance.randbytes(chance.randrange(1, 100))
      what = 'bytes at the end'
  return bytes(data), what


def paths(content: Any, before: tuple = ()) -> Iterator[tuple]:
  """Yields the path of every value in nested containers: keys and indices from the outside in, () for the root."""
  yield before
  items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
  for key, value in items:
    yield from paths(value, (*before, key))


def changed(content: Any, chance: random.Random, values: list = VALUES) -> tuple[Any, str]:
  """Returns a copy of nested containers with one value replaced, removed, swapped or added, and a description."""
  content = copy.deepcopy(content)
  *parents, last = chance.choice([path for path in paths(content) if path])
  holder = content
  for key in parents:
    holder = holder[key]
  trail = '.'.join(map(str, (*parents, last)))
  match chance.choice(['replace', 'replace', 'replace', 'remove', 'add', 'swap']):
    case 'remove':
      del holder[last]
      return content, f'{trail} removed'
    case 'add' if isinstance(holder, dict):
      key = chance.choice([text for text in TEXTS if text.isprintable() or True])
      holder[key] = chance.choice(values)
      return content, f'{key[:20]!r} added beside {trail}'
    case 'swap' if isinstance(holder, dict) and len(holder) > 1:
      other = chance.choice(list(holder))
      holder[last], holder[other] = holder[other], holder[last]
      return content, f'{trail} and {other} swapped'
  value = chance.choice(values)
  holder[last] = copy.deepcopy(value)
  return content, f'{trail} = {repr(value)[:40]}'


def damaged_json(content: Any, chance: random.Random) -> tuple[bytes, str]:
  """Returns JSON with changed values, invalid text in place of a value, or damaged bytes, and a description."""
  kind = chance.choice(['changed', 'changed', 'changed', 'raw', 'bytes'])
  if kind == 'bytes':
    return damaged(json.dumps(content).encode(), chance)
  if kind == 'raw':
    mark, raw = '"\\u0000here"', chance.choice(_RAW)
    *parents, last = chance.choice([path for path in paths(content) if path])
    copied = holder = copy.deepcopy(content)
    for key in parents:
      holder = holder[key]
    holder[last] = '\0here'
    return json.dumps(copied).replace(mark, raw).encode(), f'{last} = {raw[:20]}'
  what = []
  for _ in range(chance.choice([1, 1, 2])):
    if [path for path in paths(content) if path]:
      content, one = changed(content, chance)
      what.append(one)
  return json.dumps(content).encode(), '; '.join(what)


ODD_FILES = ('missing', 'folder', 'pipe', 'device', 'zero', 'loop', 'dangling', 'empty')


def make_odd(path: Path, chance: random.Random) -> str:
  """Replaces a file or folder by something that is not a regular file, or removes it; returns a description."""
  kind = chance.choice(ODD_FILES)
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)
  match kind:
    case 'folder':
      path.mkdir()
    case 'pipe':
      os.mkfifo(path)
    case 'device':
      path.symlink_to('/dev/null')
    case 'zero':
      path.symlink_to('/dev/zero')
    case 'loop':
      path.symlink_to(path.name)
    case 'dangling':
      path.symlink_to('nowhere')
    case 'empty':
      path.touch()
  return f'{path.name}: {kind}'


URLS = ('gs://bucket/a', 's3://bucket/a', 'https://example.com/a', 'gs:/bucket/a', 'hdfs://host/a', 'file:///tmp/a')


def odd_path(folder: Path, chance: random.Random) -> str:
  """Returns an unusable path: a URL, an odd name or something that is not a regular file, created in `folder`."""
  kind = chance.choice(['url', 'text', 'file', 'long', 'below a file'])
  if kind == 'url':
    return chance.choice(URLS)
  if kind == 'text':
    return chance.choice([text for text in TEXTS if len(text) < 10_000])
  if kind == 'long':
    return chance.choice(['x' * 300, 'x/' * 3000, str(folder / ('\u732b' * 100))])
  odd = folder / 'odd'
  if kind == 'below a file':
    odd.write_text('not a folder')
    return str(odd / 'a')
  make_odd(odd, chance)
  return str(odd)
