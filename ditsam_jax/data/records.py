"""The record that every data set of this project is stored as: one image with its objects and expressions."""

import contextlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from ditsam_jax.errors import UserError
from ditsam_jax.terminal import listed


def record_features(encoding_format: str = 'png') -> tfds.features.FeaturesDict:
  """Features of one record; `encoding_format` of the image: 'png' or 'jpeg'. Masks are PNG of 0 and 255.

  Images and masks must be given as file objects of encoded bytes: TFDS encodes arrays with TensorFlow only.
  """
  features = tfds.features.FeaturesDict(
    {
      'image': tfds.features.Image(shape=(None, None, 3), encoding_format=encoding_format),
      'image_id': np.int64,
      'objects': tfds.features.Sequence(
        {
          'object_id': np.int64,
          'category': tfds.features.Text(),
          'mask': tfds.features.Image(shape=(None, None, 1), encoding_format='png'),  # visible pixels
          'expressions': tfds.features.Sequence(tfds.features.Text()),
          'kinds': tfds.features.Sequence(tfds.features.Text()),  # one an expression
        }
      ),
    }
  )
  # While writing nested sequences, TFDS 4.9 looks up their TensorFlow dtype and hands it on as a plain dtype.
  # The NumPy dtype serves as well and spares the TensorFlow dependency.
  serialized_info = features.get_serialized_info

  def with_numpy_dtypes():
    info = serialized_info()
    for tensor in info['objects'].values():
      tensor._tf_dtype = tensor.np_dtype
    return info

  features.get_serialized_info = with_numpy_dtypes
  return features


def check_shards(directory: Path, splits: Mapping[str, tfds.core.SplitInfo]) -> None:
  """Raises UserError where a prepared data set has lost files."""
  for split, info in splits.items():
    files = [Path(directory) / name for name in info.filenames]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
      raise UserError(f'{directory} lacks {listed(missing)}; delete the folder and prepare the data set again')


@contextlib.contextmanager
def quiet_tfds() -> Iterator[None]:
  """One progress bar, ours, in place of TFDS' own bars and messages."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  tfds.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    tfds.enable_progress_bar()
    logging.set_verbosity(verbosity)
