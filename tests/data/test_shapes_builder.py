"""TFDS reads back the scenes that were rendered; preparation happens once, completely or not at all, and quietly."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from ditsam_jax import terminal
from ditsam_jax.data import shapes
from ditsam_jax.data.shapes import builder
from ditsam_jax.errors import UserError

SCENES = shapes.ScenesConfig(train=20, val=3, test=4)


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('data')
  shapes.prepare(folder, SCENES)
  return folder


def decoded(record):
  """A record's contents as plain values that can be compared."""
  objects = record['objects']
  return (
    record['image_id'],
    record['image'].tobytes(),
    list(objects['object_id']),
    [m.tobytes() for m in objects['mask']],
    [c.decode() for c in objects['category']],
    [[e.decode() for e in es] for es in objects['expressions']],
    [[k.decode() for k in ks] for ks in objects['kinds']],
  )


@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_records_contain_the_rendered_pictures_masks_and_expressions(data_dir, split):
  source = shapes.prepare(data_dir, SCENES).as_data_source(split)
  assert len(source) == getattr(SCENES, split)
  for i, record in enumerate(source):
    scene, expressions = builder.described_scene(SCENES, split, i)
    # JPEG at quality 95 has an average error of about one grey level.
    assert np.abs(record['image'].astype(int) - scene.image).mean() < 2
    objects = record['objects']
    np.testing.assert_array_equal(np.stack(objects['mask'])[..., 0], scene.masks * 255)
    assert [c.decode() for c in objects['category']] == [s.category for s in scene.shapes]
    assert [
      [(e.decode(), k.decode()) for e, k in zip(es, ks)] for es, ks in zip(objects['expressions'], objects['kinds'])
    ] == expressions


def test_ids_are_unique_across_splits(data_dir):
  sources = shapes.prepare(data_dir, SCENES).as_data_source()
  records = [record for source in sources.values() for record in source]
  assert len({r['image_id'] for r in records}) == len(records) == 27
  ids = [i for r in records for i in r['objects']['object_id']]
  assert len(set(ids)) == len(ids)


def test_tfds_can_read_the_folder_without_our_code(data_dir):
  prepared = shapes.prepare(data_dir, SCENES)
  source = tfds.builder_from_directory(prepared.data_dir).as_data_source('val')
  assert decoded(source[2]) == decoded(prepared.as_data_source('val')[2])


def test_preparing_again_changes_and_prints_nothing(data_dir, capfd):
  files = {path: path.stat().st_mtime_ns for path in data_dir.rglob('*')}
  capfd.readouterr()
  shapes.prepare(data_dir, SCENES)
  assert {path: path.stat().st_mtime_ns for path in data_dir.rglob('*')} == files
  assert capfd.readouterr() == ('', '')


def test_preparing_prints_progress_and_nothing_else(tmp_path, capfd, monkeypatch):
  monkeypatch.setattr(terminal._Lines, 'INTERVAL', -1)
  shapes.prepare(tmp_path, SCENES)
  out, err = capfd.readouterr()
  assert out == '' and err.endswith('making shapes: 27 of 27 scenes\n')
  assert all(line.startswith('making shapes: ') for line in err.splitlines())


def test_different_settings_use_different_folders(data_dir):
  first = shapes.prepare(data_dir, SCENES).data_dir
  other = shapes.prepare(data_dir, shapes.ScenesConfig(train=2, val=1, test=1, seed=1)).data_dir
  assert first != other
  assert Path(first).is_dir() and Path(other).is_dir()
  settings = json.loads(tfds.builder_from_directory(first).info.config_description)
  assert settings['train'] == 20 and settings['image_size'] == 128


def test_an_interrupted_preparation_leaves_no_files(tmp_path, monkeypatch):
  make_record = builder.make_record

  def interrupted(config, split, index):
    if split == 'val':
      raise KeyboardInterrupt
    return make_record(config, split, index)

  monkeypatch.setattr(builder, 'make_record', interrupted)
  with pytest.raises(KeyboardInterrupt):
    shapes.prepare(tmp_path, SCENES)
  assert not [path for path in tmp_path.rglob('*') if path.is_file()]
  monkeypatch.undo()
  assert len(shapes.prepare(tmp_path, SCENES).as_data_source('train')) == 20


def test_worker_processes_do_not_change_records(data_dir, tmp_path, monkeypatch):
  monkeypatch.setattr(builder, '_FEW_SCENES', 10)
  parallel = shapes.prepare(tmp_path, SCENES, workers=2).as_data_source('train')
  alone = shapes.prepare(data_dir, SCENES).as_data_source('train')
  assert [decoded(r) for r in parallel] == [decoded(r) for r in alone]


def test_a_data_folder_that_is_a_file_is_reported(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='data folder'):
    shapes.prepare(tmp_path / 'file', SCENES)


def test_masks_are_grayscale_png_and_pictures_jpeg():
  record = builder.make_record(SCENES, 'train', 0)
  assert record['image'].getvalue()[:2] == b'\xff\xd8'
  mask = cv2.imdecode(np.frombuffer(record['objects'][0]['mask'].getvalue(), np.uint8), cv2.IMREAD_UNCHANGED)
  assert mask.shape == (128, 128) and set(np.unique(mask)) == {0, 255}
