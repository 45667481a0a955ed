"""Wrong paths, damaged data sets, full disks and too many workers: one line each, no hangs, no leftover files."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ditsam_jax import prepare
from ditsam_jax.data import shapes, workers
from ditsam_jax.data.evaluation_batches import evaluation_batches
from ditsam_jax.data.pipeline import train_batches
from ditsam_jax.data.refcoco import annotations
from ditsam_jax.data.referring import ReferringSource
from ditsam_jax.errors import UserError
from ditsam_jax.limits import MAX_PROCESSES
from tests import screens
from tests.data.refcoco_downloads import make

ROOT = Path(__file__).parents[2]


from tests.data.refusals import refusal


@pytest.mark.parametrize('option', ['--annotations', '--images'])
@pytest.mark.parametrize('finished', [False, True])
def test_paths_are_checked_even_if_the_data_is_already_prepared(tmp_path, option, finished, capsys):
  made = make(tmp_path).write()
  arguments = made.arguments(tmp_path / 'data')
  if finished:
    prepare.main(arguments)
  for path, expected in [
    ('~nobody-of-that-name/x', 'nobody-of-that-name'),
    (tmp_path / 'none', 'is not a folder'),
    (tmp_path / 'train2014' / 'COCO_train2014_000000581000.jpg', 'is not a folder'),
  ]:
    message = refusal(prepare.main, [*arguments, f'{option}={path}'])
    assert option in message and expected in message
  if finished:
    (tmp_path / 'empty').mkdir()
    assert 'COCO_train2014' in refusal(prepare.main, [*arguments, f'--images={tmp_path / "empty"}'])
    (made.folder / 'instances.json').unlink()
    assert 'instances.json: no such file' in refusal(prepare.main, arguments)
  assert 'written' not in capsys.readouterr().out.splitlines()[-1:]


def test_pipes_in_place_of_files_do_not_block(tmp_path):
  made = make(tmp_path).write()
  for file in (made.folder / 'instances.json', made.image_file(581000)):
    file.unlink()
    os.mkfifo(file)
  assert 'a device or a pipe' in refusal(annotations.read_instances, made.folder / 'instances.json', {1}, {1})
  (made.folder / 'refs(unc).p').unlink()
  os.mkfifo(made.folder / 'refs(unc).p')
  assert 'has no refs(unc).p' in refusal(prepare.main, made.arguments(tmp_path / 'data'))


@pytest.mark.parametrize('number', [-1, MAX_PROCESSES + 1, 1000])
def test_out_of_range_numbers_of_processes_and_threads_are_refused(tmp_path, tiny, number):
  made = make(tmp_path).write()
  assert f'--processes={number}: expected 0 to 64' in refusal(
    prepare.main, made.arguments(tmp_path / 'data', f'--processes={number}')
  )
  assert f'{number}' in refusal(shapes.prepare, tmp_path, workers=number)
  source = ReferringSource(tiny.directory, 'val')
  settings = {'image_size': 64, 'pixel_mean': (0.5,) * 3, 'pixel_std': (0.5,) * 3, 'batch_size': 2}
  from ditsam_jax.data.augmentation import AugmentationConfig

  small = AugmentationConfig(scale_steps=1)
  for numbers in ({'processes': number}, {'threads': -1 if number < 0 else 10 * number}):
    assert 'expected 0 to' in refusal(train_batches, source, None, augmentation=small, seed=0, **settings, **numbers)
  with pytest.raises(UserError, match='threads=0: expected 1 to'):
    next(evaluation_batches(source, None, **settings, threads=0))


def test_workers_end_when_the_preparing_process_is_killed(tmp_path):
  script = tmp_path / 'script.py'
  script.write_text(
    'from ditsam_jax.data import shapes\n'
    "if __name__ == '__main__':\n"
    f'  shapes.prepare({str(tmp_path / "data")!r}, shapes.ScenesConfig(train=900_000, val=1, test=1), workers=2)\n'
  )
  process, screen = screens.start(sys.executable, script, env={**os.environ, 'PYTHONPATH': str(ROOT)})
  errors = b''
  while not re.search(rb' [1-9][0-9]*/900002', errors):  # until the progress bar shows that the workers run
    errors += screens.shown(screen) or pytest.fail(errors.decode())
  process.kill()
  screens.rest(screen)  # returns once the workers, which also hold the terminal, have ended
  process.wait()


# -------------------------------------------------------------------------------------------------------- prepared data

SCENES = shapes.ScenesConfig(train=6, val=2, test=2, image_size=48)


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  folder = tmp_path_factory.mktemp('prepared')
  shapes.prepare(folder, SCENES, 0)
  return folder


def read_all(data_dir):
  made = shapes.prepare(data_dir, SCENES, 0)
  for in_memory in (False, True):
    source = ReferringSource(made.data_dir, 'train', in_memory=in_memory)
    for index in range(len(source)):
      source[index]


def copied(prepared, tmp_path):
  shutil.copytree(prepared, tmp_path / 'data')
  return next((tmp_path / 'data').rglob('dataset_info.json')).parent


@pytest.mark.parametrize('seed', range(3))
def test_damaged_files_are_refused_in_one_line_or_harmless(prepared, tmp_path, seed):
  chance = random.Random(seed)
  for number in range(12):
    folder = copied(prepared, tmp_path / str(number))
    file = chance.choice(
      sorted(path for path in folder.iterdir() if 'val' not in path.name and 'test' not in path.name)
    )
    data = bytearray(file.read_bytes())
    if chance.random() < 0.5:
      data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    else:
      data = data[: chance.randrange(len(data))]
    file.write_bytes(data)
    try:
      read_all(tmp_path / str(number) / 'data')
    except UserError as error:
      assert str(error).isprintable() and len(str(error)) < 700


def test_flipped_bits_in_records_are_detected(prepared, tmp_path):
  folder = copied(prepared, tmp_path)
  file = next(folder.glob('*train*'))
  data = file.read_bytes()
  written = len(data.rstrip(b'\0'))
  for place in np.linspace(9000, written - 20_000, 5).astype(int).tolist():
    changed = bytearray(data)
    if changed[place - 200 : place + 200] == bytes(400):  # unused space between blocks
      continue
    changed[place] ^= 4
    file.write_bytes(changed)
    assert 'is damaged' in refusal(read_all, tmp_path / 'data')


def rename(folder):
  next(folder.glob('*train*')).rename(folder / 'elsewhere')


def shorten(folder):
  info = folder / 'dataset_info.json'
  content = json.loads(info.read_text())
  next(split for split in content['splits'] if split['name'] == 'train')['shardLengths'] = ['2']
  info.write_text(json.dumps(content))


def empty(folder):
  next(folder.glob('*train*')).write_bytes(b'')


def folder_in_place(folder):
  file = next(folder.glob('*train*'))
  file.unlink()
  file.mkdir()


def half_written(folder):
  (folder / 'dataset_info.json').unlink()


def pipe(folder):
  (folder / 'dataset_info.json').unlink()
  os.mkfifo(folder / 'dataset_info.json')


def no_features(folder):
  (folder / 'features.json').write_text('[' * 5000)


def somebody_elses(folder):
  shutil.rmtree(folder)
  folder.write_text('mine')


@pytest.mark.parametrize(
  'damage',
  [rename, shorten, empty, folder_in_place, half_written, pipe, no_features, somebody_elses],
  ids=lambda damage: damage.__name__,
)
def test_damage_is_reported_with_the_folder(prepared, tmp_path, damage):
  folder = copied(prepared, tmp_path)
  damage(folder)
  message = refusal(read_all, tmp_path / 'data')
  assert str(folder.parent) in message and 'prepare' in message


# --------------------------------------------------------------------------------------------------------- a full disk


@pytest.mark.multiprocess
@pytest.mark.parametrize('processes', [0, 2])
def test_a_full_disk_is_one_line_and_leaves_no_files(tmp_path, processes):
  """RLIMIT_FSIZE simulates the full disk: a write fails in the middle of a file."""
  made = make(tmp_path).write()
  script = tmp_path / 'script.py'
  script.write_text(f"""
import resource, signal, sys
from pathlib import Path
from ditsam_jax import command_line, prepare
from ditsam_jax.data import shapes

def both():
  resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
  signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  if sys.argv[1] == 'shapes':
    shapes.prepare({str(tmp_path / 'data')!r}, shapes.ScenesConfig(train=30, val=2, test=2), 0)
  else:
    prepare.main({made.arguments(tmp_path / 'data', f'--processes={processes}')!r})

if __name__ == '__main__':
  command_line.run(both)
""")
  for what in ('refcoco',) if processes else ('refcoco', 'shapes'):
    done = subprocess.run(
      [sys.executable, str(script), what],
      env={**os.environ, 'PYTHONPATH': str(ROOT)},
      capture_output=True,
      text=True,
      timeout=100,
    )
    assert done.returncode == 2 and 'Traceback' not in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1].startswith('error: data folder ') and 'too large' in done.stderr
    assert not [path for path in (tmp_path / 'data').rglob('*') if path.is_file()]


def test_too_many_workers_are_refused_before_any_starts():
  assert 'processes=65' in refusal(next, workers.map_ordered(abs, [1], 65))
