"""The TFDS record that all data sets share: an image with its objects and expressions."""

import contextlib
import io
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]  # compiled

from ditsam_jax.errors import UserError
from ditsam_jax.terminal import printable

_REFUSED = re.compile(r'\b(?:open|write|close|fsync|ftruncate|mkdir|rename)\(\) failed: ([^;]+)')


def record_features(encoding_format: str | None = 'png') -> tfds.features.FeaturesDict:
  """Features of a record. `encoding_format` of images is 'png', 'jpeg' or None (either); masks are PNG with 0 and 255.

  Images and masks must be given as file objects of encoded bytes, because TFDS encodes arrays with TensorFlow only.
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
          'kinds': tfds.features.Sequence(tfds.features.Text()),  # one per expression
        }
      ),
    }
  )
  # To write nested sequences, TFDS 4.9 looks up their TensorFlow dtype but uses it like a NumPy dtype. Supplying the
  # NumPy dtype avoids the TensorFlow dependency.
  serialized_info = features.get_serialized_info

  def with_numpy_dtypes():
    info: Any = serialized_info()
    for tensor in info['objects'].values():
      tensor._tf_dtype = tensor.np_dtype
    return info

  features.get_serialized_info = with_numpy_dtypes  # pyright: ignore[reportAttributeAccessIssue]  # see above
  return features


def check_shards(directory: str | Path, splits: Mapping[str, Any]) -> None:
  """Raises UserError if files of a prepared data set are missing, truncated or foreign."""
  for info in splits.values():
    for name, length in zip(sorted(info.filenames), info.shard_lengths):
      file = Path(directory) / name
      if not file.is_file():
        raise UserError(damaged(directory, f'{name} is missing'))
      try:
        with contextlib.closing(array_record_module.ArrayRecordReader(str(file))) as reader:
          found = reader.num_records()
      except Exception as error:  # RuntimeError and others
        raise UserError(damaged(directory, f'{name}: {printable(error, 150)}')) from error
      if found != length:
        raise UserError(damaged(directory, f'{name} holds {found} records, dataset_info.json says {length}'))


def damaged(directory: str | os.PathLike, what: str) -> str:
  """The error message for a prepared data set that cannot be read."""
  return f'data set {printable(directory)} is damaged: {what}; delete that folder and prepare the data again'


@contextlib.contextmanager
def writing_to(data_dir: str | os.PathLike) -> Iterator[None]:
  """Turns errors of writing, such as a full disk, from Python or ArrayRecord, into UserError."""
  try:
    yield
  except (OSError, RuntimeError) as error:
    if isinstance(error, OSError):
      reason = error.strerror or printable(error, 150)
    elif not (refused := _REFUSED.search(str(error))):
      raise
    else:
      reason = printable(refused[1])
    raise UserError(
      f'data folder {printable(data_dir)}: {reason}; expected a writable folder with enough space'
    ) from error


@contextlib.contextmanager
def quiet_tfds() -> Iterator[None]:
  """Silences TFDS' progress bars and messages."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  tfds.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    tfds.enable_progress_bar()
    logging.set_verbosity(verbosity)
