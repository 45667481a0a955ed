"""`ref_coco` as prepared by TFDS can be used too."""

import contextlib
import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from ditsam_jax.data import datasets
from ditsam_jax.data.evaluation_batches import evaluation_batches
from ditsam_jax.errors import UserError
from ditsam_jax.tokenization import Tokenizer
from tests.data.refcoco_downloads import make


def _box_features():
  return {'id': np.int64, 'area': np.int64, 'bbox': tfds.features.BBoxFeature(), 'label': np.int64}


def _features():
  """Returns the features of tensorflow_datasets/datasets/ref_coco, version 1.1.0."""
  features = tfds.features.FeaturesDict(
    {
      'image': tfds.features.Image(encoding_format='jpeg'),
      'image/id': np.int64,
      'objects': tfds.features.Sequence(
        _box_features()
        | {
          'gt_box_index': np.int64,
          'mask': tfds.features.Image(encoding_format='png'),
          'refexp': tfds.features.Sequence({'refexp_id': np.int64, 'raw': tfds.features.Text()}),
        }
      ),
      'coco_annotations': tfds.features.Sequence(_box_features()),
    }
  )
  serialized_info = features.get_serialized_info

  def with_numpy_dtypes():  # as in records.py: nested sequences without TensorFlow
    info = serialized_info()
    for tensor in _tensors(info):
      tensor._tf_dtype = tensor.np_dtype
    return info

  features.get_serialized_info = with_numpy_dtypes
  return features


def _tensors(info):
  return [t for value in info.values() for t in _tensors(value)] if isinstance(info, dict) else [info]


with tfds.core.registered.skip_registration():

  class RefCoco(tfds.core.GeneratorBasedBuilder):
    """Writes downloads like TFDS: masks as 1-bit PNG, a split 'validation'."""

    VERSION = tfds.core.Version('1.1.0')
    name = 'ref_coco'

    def __init__(self, downloads, **kwargs):
      self._downloads = downloads
      super().__init__(config=tfds.core.BuilderConfig(name='refcoco_unc'), file_format='array_record', **kwargs)

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=_features())

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples('train'), 'validation': self._generate_examples('val')}

    def _generate_examples(self, split):
      made, zero = self._downloads, tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
      for image_id in dict.fromkeys(ref['image_id'] for ref in made.refs if ref['split'] == split):
        boxes = [
          {'id': ref['ann_id'], 'area': 1, 'bbox': zero, 'label': 18}
          for ref in made.refs
          if ref['image_id'] == image_id
        ]
        objects = []
        for index, (box, ref) in enumerate(zip(boxes, (r for r in made.refs if r['image_id'] == image_id))):
          mask = io.BytesIO()
          Image.fromarray(made.masks[ref['ann_id']]).save(mask, format='png')
          mask.seek(0)
          objects.append(
            box
            | {
              'gt_box_index': index,
              'mask': mask,
              'refexp': [{'refexp_id': sentence['sent_id'], 'raw': sentence['raw']} for sentence in ref['sentences']],
            }
          )
        yield (
          image_id,
          {
            'image': io.BytesIO(made.image_file(image_id).read_bytes()),
            'image/id': image_id,
            'objects': objects,
            'coco_annotations': boxes,
          },
        )


@pytest.fixture(scope='module')
def theirs(tmp_path_factory):
  made = make(tmp_path_factory.mktemp('downloads'))
  builder = RefCoco(made, data_dir=str(made.root / 'data'))
  with contextlib.redirect_stdout(io.StringIO()):
    builder.download_and_prepare()
  return made, made.root / 'data'


@pytest.mark.parametrize('split, number', [('train', 12), ('val', 4)])
def test_tfds_records_yield_the_same_samples(theirs, split, number):
  made, data_dir = theirs
  source = datasets.open_split('refcoco', data_dir, split)
  assert len(source) == number
  for sample in (source[i] for i in range(number)):
    ref = next(ref for ref in made.refs if ref['ann_id'] == sample.object_id)
    np.testing.assert_array_equal(sample.mask, made.masks[ref['ann_id']])
    assert sample.expressions == tuple(sentence['raw'] for sentence in ref['sentences'])
    assert (sample.image_id, sample.kinds) == (ref['image_id'], ('',) * len(sample.expressions))
    assert sample.category == '18' and sample.image.shape[:2] == sample.mask.shape


def test_the_pipeline_reads_tfds_records(theirs, vocabulary_file):
  source = datasets.open_split('refcoco', theirs[1], 'val')
  batches = list(
    evaluation_batches(
      source, Tokenizer(vocabulary_file, 6), image_size=32, pixel_mean=(0.5,) * 3, pixel_std=(0.5,) * 3, batch_size=4
    )
  )
  assert sum(int(batch['valid'].sum()) for batch, _ in batches) == 6


def test_missing_splits_partitions_and_formats_are_named(theirs, tmp_path):
  with pytest.raises(UserError, match='no split.*testA'):
    datasets.open_split('refcoco', theirs[1], 'testA')
  with pytest.raises(UserError, match='ditsam_jax.prepare --dataset=refcocog'):
    datasets.open_split('refcocog', theirs[1], 'val')
  copy = tmp_path / 'ref_coco' / 'refcoco_unc' / '1.1.0'
  copy.mkdir(parents=True)
  for name in ('dataset_info.json', 'features.json'):
    text = (theirs[1] / 'ref_coco' / 'refcoco_unc' / '1.1.0' / name).read_text()
    (copy / name).write_text(text.replace('array_record', 'tfrecord'))
  with pytest.raises(UserError, match='tfrecord, expected array_record.*convert_format'):
    datasets.open_split('refcoco', tmp_path, 'val')
