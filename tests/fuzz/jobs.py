"""The predict command: flags, prompts files, folders of images, results of earlier runs."""

import json
import random
import shutil
from pathlib import Path

from PIL import Image

from ditsam_jax import predict
from ditsam_jax.geometry.masks import decode_rle
from ditsam_jax.jobs.file_names import MASK
from tests.fuzz.mutations import NUMBERS, TEXTS, changed, damaged, damaged_json, make_odd, odd_path
from tests.fuzz.outcomes import ACCEPTED, PARTLY, REFUSED, Violation, check_folder, command, strict_json
from tests.fuzz.seeds import save_picture, save_sam, save_text_model

_ROWS = [
  {'image': 'a.png', 'text': 'the red circle', 'id': 'one'},
  {'image': 'b.png', 'points': [[3, 4], [5, 6]], 'labels': [1, 0], 'id': 2},
  {'image': 'a.png', 'box': [1, 2, 30, 20], 'text': 'the blue square'},
  {'image': 'b.png', 'points': [[3, 4]]},
]


def prepare(folder: Path) -> None:
  save_text_model(folder / 'text')
  save_sam(folder / 'sam')
  (folder / 'images').mkdir()
  save_picture(folder / 'images' / 'a.png')
  save_picture(folder / 'images' / 'b.png', height=30)


def case(made: Path, work: Path, chance: random.Random, note) -> str:
  images, output = work / 'images', work / 'output'
  shutil.copytree(made / 'images', images)
  pictures = chance.random() < 0.5
  results = work / 'results.jsonl'
  arguments = [f'--checkpoint={made / "text"}', f'--output={output}', *([] if pictures else ['--no-pictures'])]
  arguments += [f'--json={results}'] if not pictures or chance.random() < 0.7 else []
  kind = chance.choice(['flags', 'flags', 'lines', 'lines', 'lines', 'images', 'results'])
  if kind == 'flags':
    arguments += [f'--image={images}', *_flags(chance, work)]
  elif kind == 'lines':
    file = work / 'prompts.jsonl'
    file.write_bytes(_lines(chance))
    arguments += [f'--prompts={file}', f'--images-dir={images}']
  elif kind == 'images':
    what = _odd_images(images, chance)
    note(what)
    arguments += [f'--image={chance.choice([images, images / "*", images / "a.png"])}', '--text=the red circle']
  else:
    arguments += [f'--image={images}', '--text=the red circle', '--point=3,4']
    command(predict.main, arguments)
    note(_damage_results(chance, results, output))
  note(f'{kind} {[argument[:60] for argument in arguments[2:]]}')
  before = results.read_bytes() if results.exists() and results.is_file() else b''
  ran = command(predict.main, arguments)
  check_folder(work)
  rows = _check_lines(results, before) if ran.status == 0 or kind != 'results' else []
  if kind != 'results':  # there, one is damaged on purpose and is not overwritten
    _check_pictures(output)
  # Damaged results that can still be read count as done, so nothing need be written.
  if kind != 'results' and ran.status == 0 and not rows and not any(output.glob('*')):
    raise Violation('wrong result', 'nothing was written')
  if ran.status:
    return PARTLY if rows or any(output.glob('*.png')) else REFUSED
  return ACCEPTED


def _flags(chance: random.Random, work: Path) -> list[str]:
  texts = [text for text in TEXTS if '\0' not in text]
  number = lambda: chance.choice([str(chance.choice(NUMBERS)), str(chance.randrange(40)), chance.choice(texts)])
  flags = []
  for _ in range(chance.choice([1, 1, 2, 3])):
    match chance.choice(['text', 'point', 'box', 'other', 'good']):
      case 'text':
        flags.append(f'--text={chance.choice(TEXTS)}')
      case 'point':
        flags.append(f'--point={",".join(number() for _ in range(chance.choice([1, 2, 2, 3, 4])))}')
      case 'box':
        flags.append(f'--box={",".join(number() for _ in range(chance.choice([3, 4, 4, 5])))}')
      case 'other':
        value = chance.choice([str(chance.choice(NUMBERS)), chance.choice(TEXTS), odd_path(work, chance)])
        flags.append(
          f'--{chance.choice(["batch-size", "dtype", "images-dir", "image", "tex", "prompts", "hosts"])}={value}'
        )
      case _:
        flags += ['--text=the red circle', '--point=3,4,1', '--box=1,1,20,20'][: chance.randrange(1, 4)]
  return flags


def _lines(chance: random.Random) -> bytes:
  lines = [json.dumps(row).encode() for row in _ROWS]
  for _ in range(chance.choice([1, 1, 2])):
    place = chance.randrange(len(lines))
    match chance.choice(['json', 'changed', 'changed', 'bytes', 'numbers']):
      case 'json':
        lines[place] = damaged_json(_ROWS[place], chance)[0].replace(b'\n', b' ')
      case 'changed':
        lines[place] = json.dumps(changed(_ROWS[place], chance)[0]).encode()
      case 'numbers':
        points = [[chance.choice(NUMBERS), chance.choice(NUMBERS)] for _ in range(chance.choice([1, 3, 2000]))]
        lines[place] = json.dumps(_ROWS[place] | {'points': points, 'labels': None}).encode()
      case _:
        return damaged(b'\n'.join(lines), chance)[0]
  return b'\n'.join(lines) + b'\n'


def _odd_images(images: Path, chance: random.Random) -> str:
  file = images / 'a.png'
  if chance.random() < 0.3:
    return make_odd(file, chance)
  if chance.random() < 0.3:
    file.rename(images / 'a\nerror: forged.png')
    return 'a file name with a line break'
  data, what = damaged(file.read_bytes(), chance)
  file.write_bytes(data)
  return what


def _damage_results(chance: random.Random, results: Path, output: Path) -> str:
  files = [path for path in (results, *sorted(output.glob('*'))) if path.is_file()]
  file = chance.choice(files)
  if chance.random() < 0.2:
    return make_odd(file, chance)
  data, what = damaged(file.read_bytes(), chance)
  file.write_bytes(data)
  return f'{file.name}: {what}'


def _check_lines(results: Path, before: bytes) -> list[dict]:
  """Checks that every new line is complete and agrees with its mask; returns them."""
  if not results.is_file() or results.is_symlink():
    return []
  data = results.read_bytes()
  rows = []
  for line in data.splitlines():
    if line + b'\n' in before:  # written by the earlier run and damaged here
      continue
    row = strict_json(line)
    if not isinstance(row.get('score'), float) or int(decode_rle(row['rle']).sum()) != row['area']:
      raise Violation('wrong result', f'score {row.get("score")!r}, area {row.get("area")!r}')
    rows.append(row)
  return rows


def _check_pictures(output: Path) -> None:
  for path in output.glob('**/*.png'):
    if path.is_file() and not path.is_symlink() and path.name.endswith(MASK):
      try:
        Image.open(path).load()
      except OSError as error:
        raise Violation('partial output', f'{path.name}: {error}') from error
