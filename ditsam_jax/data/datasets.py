"""The list of data sets; resolves a name to samples and vocabulary.

A new data set is a new `DataSet` in DATA_SETS (see data/declaration.py) and a reader. Users' own data sets are declared
by the files that `ditsam_jax.prepare` wrote.
"""

import functools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ditsam_jax.data import shapes
from ditsam_jax.data.declaration import Counts, DataSet, Partition, Reader, named
from ditsam_jax.data.own import catalogue as own
from ditsam_jax.data.refcoco import catalogue
from ditsam_jax.data.referring import ReferringSource
from ditsam_jax.errors import UserError
from ditsam_jax.fields import did_you_mean, read
from ditsam_jax.storage import bucket
from ditsam_jax.storage.bucket import AnyPath, BucketPath, is_bucket
from ditsam_jax.storage.description import read_config, vocabulary_file
from ditsam_jax.terminal import printable


def scenes_config(fields: Mapping[str, Any]) -> shapes.ScenesConfig:
  """Converts the scenes of a config, or its JSON form, to a ScenesConfig. Raises UserError for invalid fields."""
  try:
    return read(shapes.ScenesConfig, dict(fields), 'data.scenes')
  except ValueError as error:
    raise UserError(str(error)) from error


def _open_shapes(
  data_set: DataSet,
  partition: Partition,
  data_dir: str | os.PathLike,
  split: str,
  *,
  scenes: Mapping[str, Any] | None = None,
  in_memory: bool,
) -> ReferringSource:
  """Opens a split of shapes; generates the data on the first call."""
  return ReferringSource(shapes.located(data_dir, scenes_config(scenes or {})), split, in_memory=in_memory)


SHAPES = DataSet(
  'shapes',
  'coloured shapes, generated on first use',
  (Partition('', dict.fromkeys(shapes.SPLITS)),),
  # Generated when opened, in a folder that depends on the scenes; the number of objects is known only then.
  Reader(_open_shapes, lambda *_: None, lambda *_: None),
  vocabulary=Path(shapes.__file__).parent / 'vocab.txt',
  small=True,
)

DATA_SETS: dict[str, DataSet] = {data_set.name: data_set for data_set in (SHAPES, *catalogue.FAMILY.values())}
NAMES = tuple(DATA_SETS)
_FOLDERS = {'ref_coco', *map(catalogue.tfds_name, NAMES)}  # ref_coco: RefCOCO and its relatives, prepared by TFDS


def find(name: str, data_dir: str | os.PathLike) -> tuple[DataSet, Partition]:
  """Returns the declaration and partition of 'refcocog', 'refcocog/google', or a user's data set in `data_dir`.

  Raises:
    UserError: the name is unknown, or `data_dir` is in a bucket that cannot be read.
  """
  _check_bucket(str(data_dir))
  if _is_own_name(name):
    if prepared := own.find(name, data_dir):
      return prepared, prepared.partition()
    there = own.prepared_names(data_dir)
    choices = [*DATA_SETS, *there]
    raise UserError(
      f'data set {name!r} is unknown and not prepared in {printable(data_dir)!r}; {did_you_mean(name, choices)}choose '
      f'one of {", ".join(choices)}, or prepare your own: python -m ditsam_jax.prepare --name={name} '
      f'--annotations=FILE --images=DIR --data-dir={printable(data_dir)}'
    )
  return named(name, DATA_SETS)


@functools.cache  # a bucket that could be read once is not asked again
def _check_bucket(data_dir: str) -> None:
  if is_bucket(data_dir):
    bucket.check(BucketPath(data_dir))


def check_name(name: str) -> None:
  """Raises UserError if this cannot be the name of a data set."""
  if not _is_own_name(name):
    named(name, DATA_SETS)


def check_own_name(name: str) -> None:
  """Raises UserError if a user's own data set cannot have this name."""
  if name in _FOLDERS:
    raise UserError(f'--name={name} is the name of another data set; choose a different name')
  if not own.is_name(name):
    raise UserError(
      f'--name={printable(name)}: expected up to 61 lower-case letters, digits and underscores, starting with a letter'
    )


def _is_own_name(name: str) -> bool:
  return own.is_name(name) and name not in _FOLDERS


def is_small(name: str) -> bool:
  """Whether this data set is generated here and has small images. Raises UserError as `check_name` does."""
  check_name(name)
  return name in DATA_SETS and DATA_SETS[name].small


def check_splits(dataset: str, splits: Iterable[str], data_dir: str | os.PathLike) -> None:
  """Raises UserError if the data set or a split does not exist; reads no data."""
  data_set, partition = find(dataset, data_dir)
  if unknown := [split for split in splits if split not in partition.splits]:
    whose = f'{data_set.name} ({partition.name})' if partition.name else data_set.name
    raise UserError(f'split {", ".join(map(repr, unknown))} is unknown; {whose} has {", ".join(partition.splits)}')


def check_data(dataset: str, data_dir: str | os.PathLike, splits: Iterable[str]) -> None:
  """Raises UserError if the data is not prepared or lacks a split; reads no samples."""
  data_set, partition = find(dataset, data_dir)
  for split in splits:
    data_set.reader.check(data_set, partition, data_dir, split)


def vocabulary(dataset: str, init_from: str = '') -> AnyPath:
  """Returns the WordPiece vocabulary file for a data set.

  It is the vocabulary of `init_from`, the name or folder of the model that training starts from. Shapes have their own
  for training from scratch.

  Raises:
    UserError: there is no such model, or it has no vocabulary.
  """
  check_name(dataset)
  if init_from and read_config(init_from).text_encoder is not None:
    return vocabulary_file(init_from)
  if own_words := DATA_SETS[dataset].vocabulary if dataset in DATA_SETS else None:
    return own_words
  lacking = f'config.init_from={init_from!r} has none' if init_from else 'config.init_from names no model'
  raise UserError(
    f'data set {dataset!r} needs the vocabulary and weights of a text encoder, but {lacking}; convert a SAM with '
    f'BERT (python convert/torch_to_flax.py --input=sam_vit_b_01ec64.pth --text-encoder=bert-base-uncased '
    f'--fusion=layer_wise --output=models/start) and pass --config.init_from=models/start'
  )


def open_split(
  dataset: str,
  data_dir: str | os.PathLike,
  split: str,
  *,
  scenes: Mapping[str, Any] | None = None,
  in_memory: bool = False,
) -> ReferringSource:
  """Opens one split; shapes are generated on the first call.

  Args:
    dataset: one of NAMES, optionally with a partition ('refcocog/google'), or the name of a user's own data set.
    data_dir: folder of prepared data sets.
    split: one of the data set's splits, see `DATA_SETS`.
    scenes: changes to the defaults of shapes.ScenesConfig, for shapes only.
    in_memory: keep decoded pixels in memory; for small images that are read many times.

  Raises:
    UserError: the data set or split is unknown, or must be prepared first.
  """
  check_splits(dataset, [split], data_dir)
  data_set, partition = find(dataset, data_dir)
  settings = {'scenes': scenes} if data_set.small else {}
  return data_set.reader.open(data_set, partition, data_dir, split, in_memory=in_memory, **settings)


def size(dataset: str, data_dir: str | os.PathLike, split: str) -> Counts | None:
  """Returns the size of a split: that of prepared data, else the published one; None if unknown. Reads no samples."""
  data_set, partition = find(dataset, data_dir)
  return data_set.reader.size(data_set, partition, data_dir, split)
