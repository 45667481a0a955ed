"""Records are read back exactly as they were stored, and errors name the folder."""

import pickle
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from ditsam_jax.data.referring import ImageRecord, ReferringSource, check_split
from ditsam_jax.errors import UserError


@pytest.mark.parametrize('in_memory', [False, True])
def test_every_object_with_an_expression_is_read_as_stored(tiny, in_memory):
  source = ReferringSource(tiny.directory, 'train', in_memory=in_memory)
  stored = [
    (image, index, one) for image in tiny.images['train'] for index, one in enumerate(image.objects) if one.expressions
  ]
  assert len(source) == len(stored)
  for _ in range(2):  # the second time from memory, if kept there
    for sample, (image, index, one) in zip((source[i] for i in range(len(source))), stored):
      np.testing.assert_array_equal(sample.image, image.image)
      np.testing.assert_array_equal(sample.mask, one.mask)
      assert sample.mask.dtype == bool
      assert (sample.expressions, sample.kinds) == (tuple(one.expressions), tuple(one.kinds))
      assert (sample.image_id, sample.object_id) == (image.image_id, one.object_id)
      assert sample.object_index == index
      assert sample.category == one.category
      assert sample.image_categories == tuple(other.category for other in image.objects)


def test_missing_files_are_found_without_reading_records(tiny, tmp_path):
  folder = tmp_path / 'tiny'
  shutil.copytree(tiny.directory, folder)
  next(folder.glob('*-val.array_record*')).unlink()
  check_split(folder, 'train')
  with pytest.raises(UserError, match='is damaged: .*val.* is missing'):
    check_split(folder, 'val')


def test_images_include_objects_without_expressions(tiny):
  source = ReferringSource(tiny.directory, 'val')
  stored = tiny.images['val']
  assert source.num_images == 5
  assert [source.image(k).num_objects for k in range(5)] == [len(image.objects) for image in stored]
  np.testing.assert_array_equal(source.image(1).mask(1), stored[1].objects[1].mask)
  assert source.image(1).expressions(1) == ()


def test_agrees_with_the_tfds_reader(tiny):
  theirs = tfds.builder_from_directory(tiny.directory).as_data_source('train')[6]
  ours = ReferringSource(tiny.directory, 'train').image(6)
  np.testing.assert_array_equal(ours.image(), theirs['image'])
  objects = theirs['objects']
  for index in range(ours.num_objects):
    np.testing.assert_array_equal(ours.mask(index), objects['mask'][index][..., 0] == 255)
    assert [text.encode() for text in ours.expressions(index)] == list(objects['expressions'][index])


def test_pixels_kept_in_memory_are_read_only(tiny):
  record = ReferringSource(tiny.directory, 'val', in_memory=True).image(0)
  with pytest.raises(ValueError):
    record.image()[0, 0] = 0


def test_a_pickled_copy_reads_the_same(tiny):
  source = ReferringSource(tiny.directory, 'train')
  sent = pickle.dumps(source)
  assert len(sent) < 1000  # paths, not contents
  np.testing.assert_array_equal(pickle.loads(sent)[5].mask, source[5].mask)


def test_missing_splits_and_data_sets_are_named(tiny, tmp_path):
  with pytest.raises(UserError, match='no split .*testA.* train, val'):
    ReferringSource(tiny.directory, 'testA')
  with pytest.raises(UserError, match=f'{tmp_path}.*not a prepared data set'):
    ReferringSource(tmp_path, 'train')


def test_a_damaged_image_is_named():
  from tensorflow_datasets.proto import tf_example_pb2

  example = tf_example_pb2.Example()
  example.features.feature['image_id'].int64_list.value.append(31)
  example.features.feature['image'].bytes_list.value.append(b'nothing')
  with pytest.raises(UserError, match='image of image 31'):
    ImageRecord(example.SerializeToString()).image()
