"""Feeds damaged annotations in every format to the prepare command."""

import copy
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from ditsam_jax import prepare as prepare_command
from ditsam_jax.data import datasets
from ditsam_jax.data.declaration import counted, prepared_folder
from tests.data.own.pictures import compressed, make, polygon, uncompressed
from tests.fuzz.mutations import CANARY, URLS, VALUES, changed, damaged, damaged_json, make_odd
from tests.fuzz.outcomes import ACCEPTED, PARTLY, REFUSED, Violation, check_folder, command

_PATHS = [
  '../secret.png', '/etc/passwd', '/dev/zero', '/dev/stdin', '..', '.', 'photos/../../x', 'a\\b', 'C:\\a', '~/a',
  '~nobody/a', 'x' * 300, 'x/' * 3000, 'nowhere.png', *URLS,
]  # fmt: skip
_VALUES = [*VALUES, *_PATHS, f'$(touch {CANARY})', {'size': [48, 64], 'counts': []}, [[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]]]
_SPLITS = ('train', 'train', 'train', 'val', 'val', 'test')
_FORMATS = ('jsonl', 'csv', 'coco', 'sa2va', 'parquet', 'folder')


def prepare(folder: Path) -> None:
  own = make(folder)
  masks = [own.masks[f'{index}.png'] for index in range(6)]
  spelled = ['masks/0.png', polygon(masks[1]), compressed(masks[2]), uncompressed(masks[3]), None, 'masks/5.png']
  rows = [
    {'image': f'{index}.png', 'text': ['a box', f'box {index}'][: 1 + index % 2], 'mask': spelled[index],
     'split': _SPLITS[index], 'id': index + 1, 'category': 'box'}
    for index in range(6)
  ]  # fmt: skip
  coco = {
    'images': [{'id': index, 'file_name': f'{index}.png', 'split': _SPLITS[index]} for index in range(6)],
    'annotations': [
      {'id': index, 'image_id': index, 'category_id': 1, 'caption': 'a box', 'segmentation': polygon(masks[index])}
      for index in range(6)
    ],
    'categories': [{'id': 1, 'name': 'box'}],
  }
  sa2va = [{'image': f'{index}.png', 'mask': [polygon(masks[index])], 'text': ['a box']} for index in range(6)]
  hub = [
    {'image': {'bytes': (own.photos / f'{index}.png').read_bytes(), 'path': 'a'}, 'answer': ['a box'],
     'segmentation': polygon(masks[index])[0], 'question_id': str(index), 'split': _SPLITS[index]}
    for index in range(6)
  ]  # fmt: skip
  for name, content in (('jsonl', rows), ('coco', coco), ('sa2va', sa2va)):
    (folder / f'{name}.json').write_text(json.dumps(content))
  parquet.write_table(pa.Table.from_pylist(hub), folder / 'hub.parquet', row_group_size=2)
  for index in range(6):
    split = folder / 'folders' / _SPLITS[index]
    split.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(own.photos / f'{index}.png', split / f'{index}.png')
    shutil.copyfile(folder / 'masks' / f'{index}.png', split / f'{index}.mask.png')
    (split / f'{index}.txt').write_text('a box\nthe box\n')


def case(made: Path, work: Path, chance: random.Random, note) -> str:
  for part in ('photos', 'masks'):
    shutil.copytree(made / part, work / part)
  name = chance.choice(_FORMATS)
  annotations, what = _annotations(name, made, work, chance)
  if chance.random() < 0.25:
    file = chance.choice(sorted(path for part in ('photos', 'masks') for path in (work / part).iterdir()))
    if chance.random() < 0.6:
      data, one = damaged(file.read_bytes(), chance)
      file.write_bytes(data)
    else:
      one = make_odd(file, chance)
    what += f'; {file.name}: {one}'
  if name not in ('parquet', 'folder') and chance.random() < 0.2:  # a file per split
    (work / 'annotations').mkdir()
    annotations = annotations.rename(work / 'annotations' / f'train.{"csv" if name == "csv" else "json"}').parent
    if chance.random() < 0.3:
      what += f'; {make_odd(annotations / "val.json", chance)}'
  arguments = ['--name=mine', f'--annotations={annotations}', f'--images={work / "photos"}', f'--masks={work}']
  arguments += [f'--data-dir={work / "data"}', '--processes=0']
  arguments += ['--skip-bad'] if chance.random() < 0.5 else []
  arguments += [f'--format={name}'] if chance.random() < 0.3 else []
  if name == 'folder':
    arguments = [one for one in arguments if not one.startswith(('--images', '--masks'))]
  only_check = chance.random() < 0.2
  note(f'{name}: {what}')
  ran = command(prepare_command.main, [*arguments, *(['--check'] if only_check else [])])
  check_folder(work)
  folder = prepared_folder(work / 'data', 'mine')
  if (ran.status or only_check) and folder.exists():
    raise Violation('partial output', 'a refused data set was written')
  if ran.status:
    return REFUSED
  if not only_check:
    _check(work / 'data', folder)
  return PARTLY if 'left out' in ran.output else ACCEPTED


def _annotations(name: str, made: Path, work: Path, chance: random.Random) -> tuple[Path, str]:
  """Writes damaged annotations; returns the file or folder and a description of the damage."""
  if name == 'parquet':
    file = work / 'hub.parquet'
    rows = parquet.read_table(made / 'hub.parquet').to_pylist()
    if chance.random() < 0.5:
      data, what = damaged((made / 'hub.parquet').read_bytes(), chance)
      file.write_bytes(data)
      return file, what
    column = chance.choice(list(rows[0]))
    value = chance.choice(_VALUES)
    try:
      parquet.write_table(pa.Table.from_pylist([row | {column: value} for row in rows]), file)
    except (pa.ArrowException, UnicodeError, OverflowError, TypeError, ValueError):  # not storable in a table
      shutil.copyfile(made / 'hub.parquet', file)
    return file, f'{column} = {repr(value)[:40]}'
  if name == 'folder':
    shutil.copytree(made / 'folders', work / 'folders')
    file = chance.choice(sorted(path for path in (work / 'folders').rglob('*') if path.is_file()))
    if chance.random() < 0.5:
      data, what = damaged(file.read_bytes(), chance)
      file.write_bytes(data)
      return work / 'folders', f'{file.name}: {what}'
    return work / 'folders', make_odd(file, chance)
  content = json.loads((made / f'{"jsonl" if name == "csv" else name}.json').read_text())
  file = work / f'mine.{name}'
  if name in ('coco', 'sa2va'):
    data, what = damaged_json(content, chance) if chance.random() < 0.5 else _values(content, chance)
  elif name == 'csv':
    data, what = _table(content, chance)
  else:
    data, what = _lines(content, chance)
  file.write_bytes(data)
  return file, what


def _values(content, chance: random.Random) -> tuple[bytes, str]:
  what = []
  for _ in range(chance.choice([1, 1, 3])):
    try:
      content, one = changed(content, chance, _VALUES)
      what.append(one)
    except IndexError:  # nothing left to change
      break
  return json.dumps(content, default=str).encode(), '; '.join(what)


def _lines(rows: list[dict], chance: random.Random) -> tuple[bytes, str]:
  lines, place = [json.dumps(row).encode() for row in rows], chance.randrange(len(rows))
  kind = chance.choice(['values', 'values', 'values', 'json', 'bytes', 'all'])
  if kind == 'all':
    return damaged(b'\n'.join(lines), chance)
  if kind == 'bytes':
    lines[place], what = damaged(lines[place], chance)
  elif kind == 'json':
    lines[place], what = damaged_json(rows[place], chance)
  else:
    lines[place], what = _values(rows[place], chance)
  return b'\n'.join(lines) + b'\n', f'line {place + 1}: {what}'


def _table(rows: list[dict], chance: random.Random) -> tuple[bytes, str]:
  rows = copy.deepcopy(rows)
  row, column = chance.choice(rows), chance.choice(list(rows[0]))
  value = row[column] = chance.choice(_VALUES)
  cells = [list(rows[0])] + [
    [one if isinstance(one, str) else json.dumps(one, default=str) for one in row.values()] for row in rows
  ]
  quoted = [','.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in cells]
  data = '\r\n'.join(quoted).encode('utf-8', 'surrogatepass')
  if chance.random() < 0.3:
    return damaged(data, chance)
  return data, f'{column} = {repr(value)[:40]}'


def _check(data_dir: Path, folder: Path) -> None:
  """Checks that the data set can be read, matches its counts, and that every mask fits its image."""
  for split, counts in counted(folder).items():
    source = datasets.open_split('mine', data_dir, split)
    if (source.num_images, len(source)) != (counts.images, counts.objects):
      raise Violation('wrong result', f'{split}: {source.num_images} images, {len(source)} objects; counted {counts}')
    for index in range(len(source)):
      sample = source[index]
      mask, image = np.asarray(sample.mask), np.asarray(sample.image)
      if mask.shape != image.shape[:2] or not set(np.unique(mask)) <= {0, 1}:
        raise Violation('wrong result', f'mask {mask.shape} of an image {image.shape}')
      if not sample.expressions or not all(isinstance(text, str) and text.strip() for text in sample.expressions):
        raise Violation('wrong result', f'expressions {sample.expressions!r}'[:200])
