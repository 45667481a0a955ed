"""A small data set in our record format, written with TFDS like the real ones."""

import contextlib
import io
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from ditsam_jax.data.records import record_features

_SIZES = ((48, 64), (64, 48), (64, 64), (20, 64))  # wide, tall, square, thin
_WORDS = 'a the red green blue box on left right of first second third'.split()


class StoredObject(NamedTuple):
  object_id: int
  category: str
  mask: np.ndarray
  expressions: list[str]
  kinds: list[str]


class StoredImage(NamedTuple):
  image: np.ndarray
  image_id: int
  objects: list[StoredObject]


class StoredDataset(NamedTuple):
  directory: str
  images: dict[str, list[StoredImage]]  # by split


def _make_images(count: int, seed: int) -> list[StoredImage]:
  """Images with 1 to 4 boxes; the second box of every image has no expression."""
  rng = np.random.default_rng(seed)
  images = []
  for number in range(count):
    height, width = _SIZES[number % len(_SIZES)]
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    objects = []
    for index in range(1 + number % 4):
      top, left = rng.integers(0, height - 12), rng.integers(0, width - 12)
      mask = np.zeros((height, width), bool)
      mask[top : top + rng.integers(6, 12), left : left + rng.integers(6, 12)] = True
      colours = [] if index == 1 else _WORDS[2 : 3 + (number + index) % 3]
      texts = [f'{colour} box on the left' for colour in colours]
      objects.append(
        StoredObject(1000 * number + index, f'{_WORDS[2 + index]} box', mask, texts, ['attribute'] * len(texts))
      )
    images.append(StoredImage(image, 10 * number + 7, objects))
  return images


_IMAGES = {'train': _make_images(24, seed=0), 'val': _make_images(5, seed=1)}


class TinyBoxes(tfds.core.GeneratorBasedBuilder):
  """Writes the images of `_make_images`."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(builder=self, features=record_features(), disable_shuffling=True)

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(images) for split, images in _IMAGES.items()}

  def _generate_examples(self, images):
    for key, stored in enumerate(images):
      yield (
        key,
        {
          'image': _png(stored.image[..., ::-1]),
          'image_id': stored.image_id,
          'objects': [{**one._asdict(), 'mask': _png(one.mask.astype(np.uint8) * 255)} for one in stored.objects],
        },
      )


def _png(pixels: np.ndarray) -> io.BytesIO:
  return io.BytesIO(cv2.imencode('.png', pixels)[1].tobytes())


@pytest.fixture(scope='session')
def tiny(tmp_path_factory) -> StoredDataset:
  """Splits train (24 images) and val (5 images), prepared."""
  builder = TinyBoxes(data_dir=str(tmp_path_factory.mktemp('tiny')), file_format='array_record')
  with contextlib.redirect_stdout(io.StringIO()):
    builder.download_and_prepare()
  return StoredDataset(str(builder.data_path), _IMAGES)


@pytest.fixture(scope='session')
def vocabulary_file(tmp_path_factory):
  file = tmp_path_factory.mktemp('vocabulary') / 'vocab.txt'
  file.write_text('\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *_WORDS, '##es', ',']) + '\n')
  return file
