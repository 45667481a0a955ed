"""Random access to the referring expressions of a split of a prepared TFDS data set."""

import dataclasses
import multiprocessing
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from ditsam_jax.data import shards
from ditsam_jax.data.records import check_shards, damaged
from ditsam_jax.errors import UserError
from ditsam_jax.storage.bucket import BucketPath
from ditsam_jax.storage.paths import any_path
from ditsam_jax.terminal import listed, printable


@dataclasses.dataclass(frozen=True)
class ReferringSample:
  """An object of an image with all its expressions."""

  image: np.ndarray  # uint8 [h, w, 3]
  mask: np.ndarray  # bool [h, w]
  expressions: tuple[str, ...]
  kinds: tuple[str, ...]  # of each expression, '' if the data set has no kinds
  image_id: int
  object_id: int
  category: str
  object_index: int  # among the objects of the image
  image_categories: tuple[str, ...]  # of all objects of the image


class _Names(NamedTuple):
  """The names of a record's features."""

  image_id: str
  object_id: str
  category: str
  expressions: str


_OURS = _Names('image_id', 'objects/object_id', 'objects/category', 'objects/expressions')
# TFDS' own `ref_coco`, whose objects have the annotation's id, a category number and `raw` sentences.
_REF_COCO = _Names('image/id', 'objects/id', 'objects/label', 'objects/refexp/raw')


class ImageRecord:
  """An image with all its objects; pixels are decoded on demand, and cached with `keep`.

  Reads the records of records.py and those of TFDS' `ref_coco`.

  Parses the stored tf.train.Example itself: TFDS' NumPy reader always decodes the masks of all objects (skipping that
  inside a sequence requires TensorFlow), and takes ten times as long for parsing alone.
  """

  def __init__(self, serialised: bytes, *, keep: bool = False):
    example = tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]  # created by protobuf at run time
    self._features = example.FromString(serialised).features.feature
    self._names = _REF_COCO if _REF_COCO.image_id in self._features else _OURS
    # Pixels by object, and those of the image under None.
    self._kept: dict[int | None, np.ndarray] | None = {} if keep else None

  @property
  def image_id(self) -> int:
    return self._features[self._names.image_id].int64_list.value[0]

  @property
  def object_ids(self) -> tuple[int, ...]:
    return tuple(self._features[self._names.object_id].int64_list.value)

  @property
  def categories(self) -> tuple[str, ...]:
    names = self._features[self._names.category]
    return tuple(name.decode() for name in names.bytes_list.value) or tuple(map(str, names.int64_list.value))

  @property
  def expression_counts(self) -> tuple[int, ...]:
    """Number of expressions of each object."""
    return tuple(self._features[f'{self._names.expressions}/ragged_row_lengths_0'].int64_list.value)

  @property
  def num_objects(self) -> int:
    return len(self._features[self._names.object_id].int64_list.value)

  def check(self) -> None:
    """Raises ValueError if the record is inconsistent."""
    counts, objects = self.expression_counts, self.num_objects
    texts = self._features[f'{self._names.expressions}/ragged_flat_values'].bytes_list.value
    lengths = len(counts), len(self.categories), len(self._features['objects/mask'].bytes_list.value)
    if set(lengths) != {objects} or min(counts, default=0) < 0 or sum(counts) != len(texts):
      raise ValueError(f'{objects} objects, but {lengths} lists of sentences, categories and masks')
    if len(self._features['image'].bytes_list.value) != 1 or self.image_id is None:
      raise ValueError('it does not have exactly one image')

  def expressions(self, index: int) -> tuple[str, ...]:
    """The expressions of object `index`."""
    return self._row(self._names.expressions, index)

  def kinds(self, index: int) -> tuple[str, ...]:
    """The kind of each expression of object `index`."""
    if self._names is _REF_COCO:
      return ('',) * self.expression_counts[index]
    return self._row('objects/kinds', index)

  def image(self) -> np.ndarray:
    """The pixels, RGB uint8 [h, w, 3], read-only; ignores EXIF orientation, like the masks."""
    return self._once(None, self._decode_image)

  def mask(self, index: int) -> np.ndarray:
    """The visible pixels of object `index`, bool [h, w], read-only."""
    return self._once(index, lambda: self._decode_mask(index))

  def sample(self, index: int) -> ReferringSample:
    """Returns object `index` with decoded pixels."""
    categories = self.categories
    return ReferringSample(
      self.image(),
      self.mask(index),
      self.expressions(index),
      self.kinds(index),
      self.image_id,
      self.object_ids[index],
      categories[index],
      index,
      categories,
    )

  def _row(self, name: str, index: int) -> tuple[str, ...]:
    # TFDS stores a sequence of sequences as a flat list of values and the length of each inner sequence.
    lengths = self._features[f'{name}/ragged_row_lengths_0'].int64_list.value
    values = self._features[f'{name}/ragged_flat_values'].bytes_list.value
    start = sum(lengths[:index])
    return tuple(value.decode() for value in values[start : start + lengths[index]])

  def _once(self, key: int | None, decode: Callable[[], np.ndarray]) -> np.ndarray:
    pixels = self._kept.get(key) if self._kept else None
    if pixels is None:
      pixels = decode()
      pixels.flags.writeable = False
      if self._kept is not None:
        self._kept[key] = pixels
    return pixels

  def _decode_image(self) -> np.ndarray:
    encoded = self._features['image'].bytes_list.value[0]
    return self._decode(encoded, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION, 'image')

  def _decode_mask(self, index: int) -> np.ndarray:
    encoded = self._features['objects/mask'].bytes_list.value[index]
    return self._decode(encoded, cv2.IMREAD_GRAYSCALE, f'mask {index}') > 127

  def _decode(self, encoded: bytes, flags: int, what: str) -> np.ndarray:
    try:
      pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    except cv2.error:  # empty, or far too large
      pixels = None
    if pixels is None:
      raise UserError(f'the {what} of image {self.image_id} is not a PNG or JPEG file; prepare the data set again')
    return pixels


class ReferringSource:
  """The objects of a split that have expressions; `source[i]` is a ReferringSample.

  `directory` is a folder written by TFDS, with features.json. With `in_memory`, records are read and pixels decoded
  once, which takes 3 bytes per pixel, and one more for each object. This is for small images, where decoding dominates.

  Raises:
    UserError: the folder is not a prepared data set, or lacks the split.
  """

  def __init__(self, directory: str | os.PathLike, split: str, *, in_memory: bool = False):
    self.directory, self.split, self.in_memory = str(directory), split, in_memory
    self._records: Any = _open(self.directory, split)  # bytes, or ImageRecords if in memory
    if in_memory:
      self._records = [self._record(index, keep=True) for index in range(len(self._records))]
    self._image_of, self._object_of, self.expression_counts = self._index()

  def __reduce__(self):
    # Worker processes read the files themselves; records are not pickled.
    return _reopen, (self.directory, self.split, self.in_memory)

  def __len__(self) -> int:
    return len(self._image_of)

  def __getitem__(self, index: int) -> ReferringSample:
    return self.image(self._image_of[index]).sample(self._object_of[index])

  @property
  def num_images(self) -> int:
    return len(self._records)

  def image(self, index: int) -> ImageRecord:
    """Image `index` of the split with all its objects, including those without expressions."""
    return self._records[int(index)] if self.in_memory else self._record(int(index))

  def place(self, index: int) -> tuple[int, int]:
    """Returns the index of the image, and of the object within it, of `source[index]`."""
    return int(self._image_of[index]), int(self._object_of[index])

  def _index(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, index within the image, and number of expressions of all objects with expressions, int [n] each."""
    counts = [self._counts(index) for index in range(self.num_images)]
    rows = [
      (image, index, number) for image, numbers in enumerate(counts) for index, number in enumerate(numbers) if number
    ]
    images, objects, numbers = np.array(rows, np.int64).reshape(-1, 3).T
    return images, objects, numbers

  def _counts(self, index: int) -> tuple[int, ...]:
    record = self.image(index)
    try:
      record.check()
    except (ValueError, IndexError) as error:
      raise UserError(damaged(self.directory, f'record {index} of {self.split}: {printable(error)}')) from error
    return record.expression_counts

  def _record(self, index: int, keep: bool = False) -> ImageRecord:
    try:
      return ImageRecord(self._records[index], keep=keep)
    except Exception as error:  # ArrayRecord and protobuf raise various exceptions for damaged data
      raise UserError(damaged(self.directory, f'record {index} of {self.split}: {printable(error, 150)}')) from error


def check_split(directory: str | os.PathLike, split: str) -> None:
  """Raises UserError unless a folder is a prepared data set with this split, and all its files; reads no records."""
  _builder(str(directory), split)


def _builder(directory: str, split: str) -> Any:
  path = any_path(directory)
  try:
    local = shards.description(path) if isinstance(path, BucketPath) else path
  except OSError as error:
    raise UserError(f'data set {printable(directory)} cannot be read: {error.strerror or error}') from error
  for name in ('dataset_info.json', 'features.json'):  # TFDS would block on a pipe
    if (local / name).exists() and not (local / name).is_file():
      raise UserError(damaged(directory, f'{name} is not a file'))
  try:
    builder = tfds.builder_from_directory(local)
  except Exception as error:  # TFDS raises various exceptions for missing, foreign and damaged folders
    raise UserError(
      f'{directory} is not a prepared data set ({type(error).__name__}); expected a folder with '
      'dataset_info.json and features.json, prepare the data first'
    ) from error
  if split not in builder.info.splits:
    splits = listed(sorted(builder.info.splits))
    raise UserError(f'{directory} has no split {split!r}; choose one of {splits}')
  if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD and not isinstance(path, BucketPath):
    check_shards(directory, {split: builder.info.splits[split]})
  return builder


def _open(directory: str, split: str):
  builder, path = _builder(directory, split), any_path(directory)
  if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD and isinstance(path, BucketPath):
    info = builder.info.splits[split]
    return shards.ShardedRecords(path, sorted(info.filenames), info.shard_lengths)
  try:
    return builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
  except NotImplementedError as error:  # TFDS' default format can only be read sequentially
    raise UserError(
      f'{directory} is stored as {builder.info.file_format.value}, expected array_record; convert it: '
      f'tfds convert_format --out_file_format=array_record --dataset_version_dir={directory}'
    ) from error
  except Exception as error:
    raise UserError(damaged(directory, printable(error, 150))) from error


def _reopen(directory: str, split: str, in_memory: bool) -> ReferringSource:
  if multiprocessing.parent_process():  # workers share the cores; by default, OpenCV would use all in each
    cv2.setNumThreads(1)
  return ReferringSource(directory, split, in_memory=in_memory)
