"""Reading ahead and writing behind: order is kept, memory is bounded, and no task that was started is lost."""

import threading
import time

import numpy as np
import pytest
from PIL import Image

from ditsam_jax.errors import UserError
from ditsam_jax.inference.prompts import Prompt
from ditsam_jax.jobs import background
from ditsam_jax.jobs.background import images_ahead, in_order
from ditsam_jax.jobs.requests import Request


def requests_of(folder, names):
  return [Request(str(folder / name), name, Prompt(), None, number, '') for number, name in enumerate(names)]


def test_images_are_in_order_and_read_once_for_consecutive_prompts(tmp_path):
  for i in range(3):
    Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(tmp_path / f'{i}.png')
  names = ['0.png', '1.png', '1.png', 'missing.png', '2.png', '1.png']
  found = [(request.name, image) for request, image in images_ahead(requests_of(tmp_path, names))]
  assert [name for name, _ in found] == names
  assert isinstance(found[3][1], UserError)
  assert [image[0, 0, 0] for name, image in found if name != 'missing.png'] == [0, 1, 1, 2, 1]
  assert found[1][1] is found[2][1]


def test_read_ahead_is_bounded_by_bytes(tmp_path, monkeypatch):
  reading = []
  monkeypatch.setattr(background, 'MOST_BYTES', 3000)
  monkeypatch.setattr(background, 'THREADS', 2)
  monkeypatch.setattr(background, 'read_image', lambda path: reading.append(path) or np.zeros(1000, np.uint8))
  requests = requests_of(tmp_path, [f'{i}.png' for i in range(50)])
  for number, _ in enumerate(images_ahead(requests)):
    time.sleep(0.002)
    assert len(reading) - number <= 1 + 3 + 2  # the current one, those that fit, those the threads had started


def test_results_are_in_order_regardless_of_which_finishes_first():
  def slow(i):
    time.sleep(0.02 * (i % 3 == 0))
    if i == 5:
      raise UserError('five')
    return -i

  found = list(in_order(slow, range(20), lambda i: 1))
  assert [i for i, _ in found] == list(range(20))
  assert [result for _, result in found[:5]] == [0, -1, -2, -3, -4] and isinstance(found[5][1], UserError)


def test_writing_cannot_fall_behind_without_bound():
  taken, release = [], threading.Event()

  def items():
    for i in range(100):
      taken.append(i)
      yield i

  def write(i):
    release.wait(10)

  results = in_order(write, items(), lambda i: background.MOST_BYTES // 4)
  threading.Timer(0.2, lambda: (taken.append(None), release.set())).start()
  next(results)
  assert taken.index(None) == 5  # four are held, the fifth waits


def test_started_work_is_finished_if_the_items_raise():
  def items():
    yield from range(10)
    raise KeyboardInterrupt

  found = []
  with pytest.raises(KeyboardInterrupt):
    for i, result in in_order(lambda i: time.sleep(0.01) or i, items(), lambda i: 1):
      found.append(result)
  assert found == list(range(10))
