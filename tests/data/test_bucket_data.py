"""Data sets in a bucket equal those on a disk; an interrupted preparation leaves nothing that looks whole."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from ditsam_jax import prepare
from ditsam_jax.data import datasets, shapes, shards
from ditsam_jax.data.preparation import writer
from ditsam_jax.errors import UserError
from ditsam_jax.storage import bucket as objects
from ditsam_jax.storage import copies
from tests.buckets import Fault, bucket, store  # noqa: F401
from tests.data.own import pictures

# Fixtures of tests.buckets are used by name.
# ruff: noqa: F811


@pytest.fixture
def own(tmp_path):
  return pictures.make(tmp_path)


def rows(own):
  split = lambda index: 'val' if index > 3 else 'train'
  return [
    {'image': name, 'mask': name, 'text': [f'the box of {name}'], 'split': split(index)}
    for index, name in enumerate(own.pixels)
  ]


def arguments(own, data_dir):
  lines = own.write_lines(rows(own))
  given = [*own.arguments(lines), f'--masks={own.root / "masks"}']
  return [f'--data-dir={data_dir}' if one.startswith('--data-dir') else one for one in given]


def contents(source):
  found = []
  for index in range(len(source)):
    sample = source[index]
    found.append((sample.image_id, sample.expressions, sample.image.tobytes(), sample.mask.tobytes()))
  return found


def test_own_data_in_a_bucket_reads_like_on_a_disk(bucket, own, capsys, monkeypatch):
  monkeypatch.setattr(writer, '_SHARD', 2)  # images
  local = own.root / 'data'
  for data_dir in (local, bucket / 'data'):
    assert prepare.main(arguments(own, data_dir)) == 0
  for split in ('train', 'val'):
    there, here = (datasets.open_split('mine', where, split) for where in (bucket / 'data', local))
    assert contents(there) == contents(here) and len(there) == (4 if split == 'train' else 2)
    assert datasets.size('mine', str(bucket / 'data'), split) == datasets.size('mine', local, split)
  names = objects.entries(bucket / 'data/mine')
  assert {'preview.png', 'report.txt', 'objects.csv', '1.0.0/manifest.json', '1.0.0/dataset_info.json'} <= set(names)
  capsys.readouterr()
  assert prepare.main(arguments(own, bucket / 'data')) == 0
  assert f'unchanged: {bucket}/data/mine/1.0.0 was already prepared' in capsys.readouterr().out


def test_a_missing_split_or_data_set_is_named(bucket, own):
  prepare.main(arguments(own, bucket / 'data'))
  with pytest.raises(UserError, match='no split'):
    datasets.check_data('mine', str(bucket / 'data'), ['test'])
  with pytest.raises(UserError, match=r"data set 'other' is unknown and not prepared in 'gs://.*choose one of .*mine"):
    datasets.check_data('other', str(bucket / 'data'), ['train'])
  with pytest.raises(UserError, match='there is no bucket nowhere-at-all'):
    datasets.check_data('mine', 'gs://nowhere-at-all/data', ['train'])


@pytest.mark.parametrize('how', ['missing', 'changed'])
def test_damaged_shards_are_named(bucket, own, how):
  prepare.main(arguments(own, bucket / 'data'))
  (shard,) = [path for path in (bucket / 'data/mine/1.0.0').iterdir() if 'train' in path.name]
  if how == 'missing':
    shard.unlink()
  else:
    shard.write_bytes(shard.read_bytes()[:-1] + b'x')
  with pytest.raises(UserError, match=f'is damaged: .*{shard.name}.*(missing|checksum)'):
    datasets.open_split('mine', str(bucket / 'data'), 'train')


def test_a_split_larger_than_the_local_copies_is_read_through_them(bucket, own, monkeypatch, capsys):
  monkeypatch.setattr(writer, '_SHARD', 1)
  prepare.main(arguments(own, bucket / 'data'))
  whole = contents(datasets.open_split('mine', str(bucket / 'data'), 'train'))
  size = sum(entry.size for name, entry in objects.entries(bucket / 'data/mine').items() if '-train.' in name)
  monkeypatch.setattr(copies, 'most_bytes', lambda: int(size * 0.8))
  monkeypatch.setattr(shards, '_FEW_OPEN', 1)
  monkeypatch.setenv('DITSAM_JAX_CACHE', str(own.root / 'small'))
  source = datasets.open_split('mine', str(bucket / 'data'), 'train')
  assert contents(source) == whole and contents(source) == whole
  assert 'evicted shards are downloaded again; set DITSAM_JAX_CACHE_GB' in capsys.readouterr().err
  source._records._ahead.shutdown()
  kept = sum(path.stat().st_size for path in (own.root / 'small').rglob('*') if '-train.' in path.name)
  assert 0 < kept <= size * 0.8


def test_shapes_are_generated_once(bucket, tmp_path):
  scenes = dict(image_size=64, train=6, val=2, test=2)
  there, here = (
    datasets.open_split('shapes', where, 'val', scenes=scenes) for where in (str(bucket / 'data'), tmp_path / 'data')
  )
  assert contents(there) == contents(here)
  before = objects.entries(bucket)
  folder = shapes.located(bucket / 'data', shapes.ScenesConfig(**scenes))
  assert objects.entries(bucket) == before and (folder / shards.LAST).is_file()


def test_problems_leave_no_data_set(bucket, own):
  given = arguments(own, bucket / 'data')
  own.write_lines([*rows(own), {'image': 'none.png', 'mask': 'none.png', 'text': ['x'], 'split': 'val'}])
  with pytest.raises(UserError, match='nothing was written'):
    prepare.main(given)
  assert not [name for name in objects.entries(bucket) if '1.0.0' in name]


def _prepare(given, environment):
  os.environ.update(environment)
  prepare.main(given)


@pytest.mark.multiprocess
def test_a_preparation_killed_at_any_upload_leaves_nothing_that_looks_whole(bucket, store, own):
  processes = multiprocessing.get_context('forkserver')
  processes.set_forkserver_preload(['ditsam_jax.prepare', 'ditsam_jax.data.own.builder'])
  given = arguments(own, bucket / 'data')
  for number in (4, 6, 7):  # of the write: a probe, the claim, three files, the manifest, and what completes it
    process = processes.Process(target=_prepare, args=(given, store.environment))
    writes = lambda method, path: method in ('POST', 'PUT') and '/upload/' in path
    store.faults = [
      Fault('slow', writes, times=number - 1),
      Fault('before', writes, call=lambda: os.kill(process.pid, signal.SIGKILL)),
    ]
    process.start()
    process.join()
    store.faults = []
    assert process.exitcode == -signal.SIGKILL
    assert not (bucket / 'data/mine/1.0.0' / shards.LAST).exists()
    with pytest.raises(UserError, match='is unknown and not prepared'):
      datasets.check_data('mine', str(bucket / 'data'), ['train'])
  left = objects.entries(bucket / 'data/mine/1.0.0')
  objects.write(bucket / 'data/mine/1.0.0/leftover', b'')
  assert 'manifest.json' in left and prepare.main(given) == 0
  assert 'leftover' not in objects.entries(bucket / 'data/mine/1.0.0')
  assert len(datasets.open_split('mine', str(bucket / 'data'), 'train')) == 4


def test_two_preparations_exclude_each_other(bucket, own):
  folder = bucket / 'data/mine/1.0.0'
  with writer.staged(folder) as stage:
    with pytest.raises(UserError, match='data set gs://.*/data/mine/1.0.0 is in use by process'):
      prepare.main(arguments(own, bucket / 'data'))
    (Path(stage) / 'x').mkdir()
    for name in (shards.LAST, 'features.json'):
      (Path(stage) / 'x' / name).write_text('{}')
  with pytest.raises(UserError, match='has just prepared'):
    with writer.staged(folder):
      pass
