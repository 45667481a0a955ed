"""The logs of resumed runs, and of runs on a full disk, are complete."""

import contextlib
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from ditsam_jax.storage.bucket import BucketPath
from ditsam_jax.training import logging, uploaded
from ditsam_jax.training.logging import RunLog


def log(workdir, steps, *, first_step=0, evaluated=0):
  """Logs some steps, with an evaluation after every third."""
  with RunLog(workdir, first_step=first_step, evaluated=evaluated, total_steps=9) as run_log:
    for step in steps:
      run_log.advance()
      run_log.scalars(step, {'loss': 1 / step})
      if step % 3 == 0:
        run_log.scalars(step, {'mIoU': 10.0 * step}, 'val')


def lines(workdir):
  return (workdir / 'train_log.jsonl').read_text()


def test_the_log_of_a_resumed_run_equals_that_of_an_uninterrupted_one(tmp_path):
  log(tmp_path / 'whole', range(1, 8))
  log(tmp_path / 'killed', range(1, 7))  # the last checkpoint was at step 4
  with (tmp_path / 'killed' / 'train_log.jsonl').open('a') as file:
    file.write('{"step": 7, "tra')
  log(tmp_path / 'killed', range(5, 8), first_step=4, evaluated=3)
  assert lines(tmp_path / 'killed') == lines(tmp_path / 'whole')


def test_logging_does_not_import_pytorch():
  program = "import sys; from ditsam_jax.training import logging; assert 'torch' not in sys.modules; import torch"
  subprocess.run([sys.executable, '-c', program], check=True)


def test_a_repeated_evaluation_is_logged_once(tmp_path):
  log(tmp_path, range(1, 4))
  with RunLog(tmp_path, first_step=3, evaluated=0, total_steps=9) as run_log:
    run_log.scalars(3, {'mIoU': 30.0}, 'val')
  assert [json.loads(line) for line in lines(tmp_path).splitlines()] == [
    {'step': 1, 'train/loss': 1.0},
    {'step': 2, 'train/loss': 0.5},
    {'step': 3, 'train/loss': 1 / 3},
    {'step': 3, 'val/mIoU': 30.0},
  ]


def test_non_finite_values_are_null(tmp_path):
  with RunLog(tmp_path, first_step=0, evaluated=0, total_steps=9) as run_log:
    run_log.scalars(1, {'loss': float('nan'), 'grad_norm': float('inf')})
  assert lines(tmp_path) == '{"step": 1, "train/loss": null, "train/grad_norm": null}\n'


def events(workdir):
  """All events of a run's TensorBoard files (TFRecord format), with checksums verified."""
  found = []
  for file in sorted((workdir / 'tensorboard').iterdir()):
    data = file.read_bytes()
    while data:
      length = int.from_bytes(data[:8], 'little')
      record = data[12 : 12 + length]
      assert int.from_bytes(data[8:12], 'little') == masked_crc32c(data[:8])
      assert int.from_bytes(data[12 + length : 16 + length], 'little') == masked_crc32c(record)
      found.append(Event.FromString(record))
      data = data[16 + length :]
  return found


def test_tensorboard_gets_scalars_images_and_the_resume_step(tmp_path):
  with RunLog(tmp_path, first_step=5, evaluated=0, total_steps=9) as run_log:
    run_log.scalars(6, {'loss': 0.25})
    run_log.panel(6, np.zeros((2, 3, 3), np.uint8))
  version, session, loss, picture = events(tmp_path)
  assert version.file_version == 'brain.Event:2'
  assert session.step == 6 and session.session_log.status == session.session_log.START
  assert loss.step == 6 and loss.summary.value[0].tag == 'train/loss' and loss.summary.value[0].simple_value == 0.25
  (shown,) = picture.summary.value
  assert picture.step == 6 and shown.tag == 'validation' and (shown.image.height, shown.image.width) == (2, 3)


def test_a_run_that_starts_again_discards_the_events_of_its_first_try(tmp_path):
  for loss in (1, 2):
    with RunLog(tmp_path, first_step=0, evaluated=0, total_steps=9) as run_log:
      run_log.scalars(3, {'loss': loss})
  assert [event.step for event in events(tmp_path) if event.session_log.status == event.session_log.START] == [0, 0]


def test_a_full_disk_neither_stops_the_run_nor_loses_lines(tmp_path, monkeypatch, capfd):
  log(tmp_path / 'whole', range(1, 8))
  sizes = iter([10**6] * 3 + [45] * 6 + [10**6] * 99)  # maximum file size for each write
  room = next(sizes)

  class Disk:
    """A file on a disk that is temporarily full, in the middle of a record."""

    def __init__(self, file):
      self._file = file

    def __getattr__(self, name):
      return getattr(self._file, name)

    def __enter__(self):
      return self

    def __exit__(self, *exception):
      self._file.close()

    def write(self, data):
      nonlocal room
      room = next(sizes)
      left = max(room - self._file.tell(), 0)
      if not left:
        raise OSError(28, 'No space left on device')
      return self._file.write(data[:left])

  opened = logging.Path.open
  monkeypatch.setattr(logging.Path, 'open', lambda path, *how, **more: Disk(opened(path, *how, **more)))
  log(tmp_path / 'full', range(1, 8))
  assert lines(tmp_path / 'full') == lines(tmp_path / 'whole')
  assert len(events(tmp_path / 'full')) == len(events(tmp_path / 'whole')) == 11
  assert capfd.readouterr().err.count('the log of the run cannot be written') == 1


def test_failed_uploads_lose_no_records(monkeypatch):
  """A log of several parts in a bucket; each part starts with the first record."""
  store, failing = {}, []

  def write(path, content):
    if failing:
      raise OSError(5, 'the bucket cannot be reached')
    store[str(path)] = content

  monkeypatch.setattr(uploaded.bucket, 'write', write)
  monkeypatch.setattr(uploaded, '_PART', 20)
  monkeypatch.setattr(uploaded, '_SECONDS', 1e6)
  log = uploaded.Uploaded(BucketPath('gs://bucket/log'), parts=True)
  for number in range(24):
    failing[:] = [number] * (number % 8 in (3, 4, 5, 6))
    for act in (lambda: log.add(b'<%02d>' % number), log.flush):
      with contextlib.suppress(OSError):
        act()
  failing.clear()
  log.close()
  assert len(store) > 2 and all(content.startswith(b'<00>') for content in store.values())
  records = [int(number) for content in store.values() for number in re.findall(rb'<(\d\d)>', content)]
  assert sorted({*records}) == list(range(24)) and len(records) == 24 + len(store) - 1


def test_a_log_that_could_not_be_read_is_continued_all_the_same(monkeypatch):
  objects, answers = {'log': b'1\n2\n3\n'}, iter([OSError(5, 'the bucket cannot be reached')])

  def read(path):
    for error in answers:
      raise error
    return objects[path.name]

  monkeypatch.setattr(uploaded.bucket, 'read', read)
  monkeypatch.setattr(uploaded.bucket, 'write', lambda path, content: objects.update({path.name: content}))
  log = uploaded.Uploaded(BucketPath('gs://bucket/log'))
  with pytest.raises(OSError, match='cannot be reached'):
    log.replace_by(lambda content: content[:4])
  log.add(b'3b\n')
  log.close()
  assert objects == {'log': b'1\n2\n3b\n'}
