"""RefCOCO downloads for the prepare command: refs, instances and images with arbitrary contents."""

import copy
import functools
import json
import os
import pickle
import random
import shutil
from pathlib import Path

import numpy as np

from ditsam_jax import prepare as prepare_command
from ditsam_jax.data import datasets
from tests.data.refcoco_downloads import Downloads, as_python_2, make
from tests.fuzz.mutations import CANARY, RUNS, TEXTS, VALUES, damaged, damaged_json, make_odd, paths
from tests.fuzz.outcomes import ACCEPTED, PARTLY, REFUSED, Violation, check_folder, command

_CATEGORIES = [{'id': 1, 'name': 'person'}, {'id': 18, 'name': 'dog'}, {'id': 62, 'name': 'chair'}]
_DEEP = functools.reduce(lambda inner, _: [inner], range(300), [])
_VALUES = [*VALUES, *RUNS, _DEEP, [TEXTS], b'\xff', (1, 2), {1, 2}, np.float32(1), 1j]


def prepare(folder: Path) -> None:
  for name in ('refcoco', 'grefcoco'):
    made = make(folder / name, name).write()
    (folder / f'{name}.json').write_text(
      json.dumps({'refs': made.refs, 'images': made.images, 'annotations': made.annotations, 'categories': _CATEGORIES})
    )


def case(made: Path, work: Path, chance: random.Random, note) -> str:
  name = chance.choice(['refcoco', 'grefcoco'])
  downloads = Downloads(work / 'in', name)
  shutil.copytree(made / name, work / 'in')
  content = json.loads((made / f'{name}.json').read_text())
  refs_file = downloads.folder / ('grefs(unc).json' if name == 'grefcoco' else 'refs(unc).p')
  instances_file = downloads.folder / 'instances.json'
  what = []
  kind = chance.choice(['values', 'values', 'values', 'values', 'refs', 'instances', 'image', 'hostile', 'odd'])
  if kind == 'values':
    for _ in range(chance.choice([1, 1, 2, 4])):
      what.append(_change(content, chance))
    _write(content, refs_file, instances_file, chance)
  elif kind in ('refs', 'instances'):
    file = refs_file if kind == 'refs' else instances_file
    if file.suffix == '.p' or chance.random() < 0.5:
      data, one = damaged(file.read_bytes(), chance)
    else:
      data, one = damaged_json(json.loads(file.read_bytes()), chance)
    file.write_bytes(data)
    what.append(one)
  elif kind == 'image':
    file = chance.choice(sorted(downloads.image_dir.iterdir()))
    data, one = damaged(file.read_bytes(), chance)
    file.write_bytes(data)
    what.append(f'{file.name}: {one}')
  elif kind == 'hostile':
    what.append(_hostile(refs_file, chance))
  else:
    what.append(make_odd(chance.choice([refs_file, instances_file, *downloads.image_dir.iterdir()]), chance))
  note(f'{name} {kind}: {"; ".join(what)}')
  data_dir = work / 'data'
  skip = ['--skip-bad'] if chance.random() < 0.5 else []
  ran = command(prepare_command.main, downloads.arguments(data_dir, '--processes=0', *skip))
  check_folder(work)
  if ran.status:
    if list(data_dir.rglob('dataset_info.json')):
      raise Violation('partial output', 'a refused data set was written')
    return REFUSED
  _check(name, data_dir)
  return PARTLY if 'skipped: ' in ran.output else ACCEPTED


def _change(content: dict, chance: random.Random) -> str:
  part = chance.choice(['refs', 'refs', 'images', 'annotations', 'annotations', 'categories'])
  places = [path for path in paths(content[part]) if path]
  if not places:
    return 'nothing left'
  path = chance.choice(places)
  holder = content[part]
  for key in path[:-1]:
    holder = holder[key]
  if chance.random() < 0.15:
    del holder[path[-1]]
    return f'{part}.{".".join(map(str, path))} removed'
  if chance.random() < 0.1 and isinstance(holder, list):
    holder.append(copy.deepcopy(chance.choice(holder)))
    return f'{part}.{".".join(map(str, path[:-1]))} has one twice'
  value = chance.choice(_VALUES)
  holder[path[-1]] = copy.deepcopy(value)
  return f'{part}.{".".join(map(str, path))} = {repr(value)[:40]}'


def _write(content: dict, refs_file: Path, instances_file: Path, chance: random.Random) -> None:
  refs = content.pop('refs')
  if refs_file.suffix == '.p':
    try:
      refs_file.write_bytes(
        as_python_2(refs, chance.choice([0, 2])) if chance.random() < 0.5 else pickle.dumps(refs, 2)
      )
    except (UnicodeEncodeError, AttributeError, TypeError, OverflowError):
      refs_file.write_bytes(pickle.dumps(refs, chance.choice([2, 4])))
  else:
    refs_file.write_text(json.dumps(refs, default=str))
  instances_file.write_text(json.dumps(content, default=str))


class _Hostile:
  def __reduce__(self):
    return os.system, (f'touch {CANARY}',)


def _hostile(refs_file: Path, chance: random.Random) -> str:
  data = [
    pickle.dumps([_Hostile()], chance.choice([0, 2, 4])),
    b'cbuiltins\neval\n(S\'open("' + CANARY.encode() + b'", "w")\'\ntR.',
    b'(S"touch ' + CANARY.encode() + b'"\nios\nsystem\n.',
    b'\x80\x02]' + b'(' * 10**6 + b'.',
    b'\x80\x02' + b']' * 10**5 + b'a' * (10**5 - 1) + b'.',
    b'\x80\x02]r\xff\xff\xff\x7f.',
    b'\x80\x02U\xff.',
    b'\x80\x02B\xff\xff\xff\x7fabc.',
    b'\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f].',
    b'\x80\x02](h\x00e.',
    b'I' + b'9' * 10**5 + b'\n.',
  ]
  number = chance.randrange(len(data))
  refs_file.write_bytes(data[number])
  return f'pickle {number}'


def _check(name: str, data_dir: Path) -> None:
  """Checks that the data set can be read and every mask fits its image."""
  for split in ('train', 'val', 'testA'):
    try:
      source = datasets.open_split(name, data_dir, split)
    except Exception:  # the split was left out
      continue
    for index in range(len(source)):
      sample = source[index]
      mask, image = np.asarray(sample.mask), np.asarray(sample.image)
      if mask.shape != image.shape[:2] or not set(np.unique(mask)) <= {0, 1}:
        raise Violation('wrong result', f'mask {mask.shape} of an image {image.shape}')
      if not sample.expressions or not all(isinstance(text, str) and text.strip() for text in sample.expressions):
        raise Violation('wrong result', f'expressions {sample.expressions!r}'[:200])
