"""Stopped, killed and concurrent preparations leave no incomplete data set and no processes."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from ditsam_jax.data import datasets, workers
from ditsam_jax.data.preparation import writer
from ditsam_jax.data.refcoco import builder, catalogue
from ditsam_jax.errors import UserError
from tests import screens
from tests.data.refcoco_downloads import make, rectangle

ROOT = Path(__file__).parents[2]


@pytest.fixture
def downloads(tmp_path):
  return make(tmp_path).write()


def run_prepare(downloads, data_dir):
  return builder.prepare('refcoco', 'unc', downloads.folder, downloads.image_dir, data_dir)


def slow_down(downloads):
  """Adds large images, so that a run takes a while."""
  big = cv2.imencode('.jpg', np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), np.uint8))[1].tobytes()
  for number in range(200):
    image_id = 700000 + number
    downloads.image_file(image_id).write_bytes(big)
    downloads.images.append(
      {'id': image_id, 'file_name': downloads.image_file(image_id).name, 'height': 1000, 'width': 1000}
    )
    downloads.add_annotation(7000 + number, image_id, *rectangle(1000, 1000, 1, 1, 5, 5))
    downloads.annotations[-1]['segmentation'] = [downloads.annotations[-1]['segmentation']]
    downloads.add_ref(7000 + number, image_id, 7000 + number, 'train', ['it'])
  return downloads.write()


@pytest.mark.multiprocess
@pytest.mark.parametrize('number, status', [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_an_interrupted_run_leaves_no_data_set_and_the_next_run_writes_it(downloads, tmp_path, number, status):
  slow_down(downloads)
  data_dir = tmp_path / 'data'
  process, screen = screens.start(
    sys.executable,
    '-m',
    'ditsam_jax.prepare',
    *downloads.arguments(data_dir, '--processes=2'),
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    start_new_session=True,
  )
  errors = b''
  while not re.search(rb' [1-9][0-9]*/205', errors):  # until the progress bar shows work done
    errors += screens.shown(screen) or pytest.fail(errors.decode())
  parts = data_dir / 'refcoco' / 'unc'
  assert list(parts.glob('incomplete.*/*'))
  if number != signal.SIGKILL:
    os.killpg(process.pid, number)  # like a terminal, also signals the workers
  else:
    process.kill()
  errors += screens.rest(screen)  # until the workers, which also hold it, are gone
  assert process.wait(timeout=60) == status, errors.decode()
  assert b'Traceback' not in errors
  assert not (parts / '1.0.0').exists()
  assert bool(list(parts.glob('incomplete.*'))) == (number == signal.SIGKILL)
  with pytest.raises(UserError, match='not prepared'):
    datasets.open_split('refcoco', data_dir, 'train')
  del downloads.refs[20:]
  done = run_prepare(downloads.write(), data_dir)
  assert [path.name for path in parts.iterdir()] == ['1.0.0'] and done.whole.objects == 20


def test_a_second_process_preparing_the_same_data_set_is_refused(downloads, tmp_path):
  directory = catalogue.folder(tmp_path / 'data', 'refcoco', 'unc')
  directory.parent.mkdir(parents=True)
  (directory.parent / 'incomplete.ABCDEF_1.0.0').mkdir()
  with writer.only_one(directory):
    with pytest.raises(UserError, match='another process is preparing'):
      run_prepare(downloads, tmp_path / 'data')
  run_prepare(downloads, tmp_path / 'data')


def test_a_data_set_that_another_process_completes_meanwhile_is_not_reported_as_written(downloads, tmp_path):
  arguments = 'refcoco', 'unc', downloads.folder, downloads.image_dir, tmp_path / 'data'
  with pytest.raises(UserError, match='another process has just prepared'):
    builder.prepare(*arguments, say=lambda text: builder.prepare(*arguments))
  assert run_prepare(downloads, tmp_path / 'data').whole.images


def test_a_foreign_folder_is_not_mistaken_for_the_data_set(downloads, tmp_path):
  directory = catalogue.folder(tmp_path / 'data', 'refcoco', 'unc')
  directory.mkdir(parents=True)
  (directory / 'dataset_info.json').write_text('{}')
  with pytest.raises(UserError, match='was not written by this command'):
    run_prepare(downloads, tmp_path / 'data')


def test_only_a_few_images_are_read_ahead(monkeypatch):
  asked, given = [], []

  class Pool:
    def __init__(self, *_):
      pass

    def shutdown(self, **_):
      pass

    def submit(self, function, image):
      asked.append(image)
      return type('Future', (), {'result': lambda self: image})()

  monkeypatch.setattr(workers.concurrent.futures, 'ProcessPoolExecutor', Pool)
  for image in workers.map_ordered(abs, range(1000), 2):
    given.append(image)
    assert len(asked) - len(given) <= 2 * workers.AHEAD
  assert given == list(range(1000))


@pytest.mark.multiprocess
def test_a_killed_worker_is_reported_in_one_line(downloads, tmp_path):
  script = tmp_path / 'script.py'
  script.write_text(f"""
import os, sys
from ditsam_jax import command_line
from ditsam_jax.data.preparation import images
from ditsam_jax.data.refcoco import builder

def end(planned):
  os._exit(9)

if __name__ == '__main__':
  images.encode = end
  command_line.run(lambda: builder.prepare('refcoco', 'unc', {str(downloads.folder)!r}, {str(downloads.image_dir)!r},
                                           {str(tmp_path / 'data')!r}, processes=2))
""")
  done = subprocess.run(
    [sys.executable, str(script)],
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == 2 and 'a worker process ended early' in done.stderr.splitlines()[-1]
  assert 'Traceback' not in done.stderr
  assert not [path for path in (tmp_path / 'data').rglob('*') if path.is_file()]
