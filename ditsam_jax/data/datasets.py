"""The list of data sets; resolves a name to samples and vocabulary.

A new data set is a new `DataSet` in DATA_SETS (data/declaration.py says what it declares) and a reader. Users' own are
declared by what `ditsam_jax.prepare` wrote for them.
"""

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
from ditsam_jax.storage.description import read_config, vocabulary_file
from ditsam_jax.terminal import printable


def scenes_config(fields: Mapping[str, Any]) -> shapes.ScenesConfig:
  """The scenes that a config or its JSON form describes. Raises UserError on unknown fields or values."""
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
  """Made on the first call."""
  builder = shapes.prepare(data_dir, scenes_config(scenes or {}))
  return ReferringSource(builder.data_dir, split, in_memory=in_memory)


SHAPES = DataSet(
  'shapes',
  'coloured shapes, generated on first use',
  (Partition('', dict.fromkeys(shapes.SPLITS)),),
  # Made on opening, in a folder that depends on the scenes; how many objects they hold is known then.
  Reader(_open_shapes, lambda *_: None, lambda *_: None),
  vocabulary=Path(shapes.__file__).parent / 'vocab.txt',
  small=True,
)

DATA_SETS: dict[str, DataSet] = {data_set.name: data_set for data_set in (SHAPES, *catalogue.FAMILY.values())}
NAMES = tuple(DATA_SETS)


def find(name: str, data_dir: str | os.PathLike) -> tuple[DataSet, Partition]:
  """The declaration of 'refcocog', 'refcocog/google', or of an own data set prepared in `data_dir`.

  Raises:
    UserError: there is none.
  """
  if name not in DATA_SETS and (prepared := own.find(name, data_dir)):
    return prepared, prepared.partition()
  if own.is_name(name) and name not in DATA_SETS:
    there = own.prepared_names(data_dir)
    choices = [*DATA_SETS, *there]
    raise UserError(
      f'data set {name!r} is unknown and not prepared in {printable(data_dir)!r}; {did_you_mean(name, choices)}choose '
      f'one of {", ".join(choices)}, or prepare your own: python -m ditsam_jax.prepare --name={name} '
      f'--annotations=FILE --images=DIR --data-dir={printable(data_dir)}'
    )
  return named(name, DATA_SETS)


def check_name(name: str) -> None:
  """Raises UserError for what cannot be the name of a data set, wherever it is prepared."""
  if not own.is_name(name):
    named(name, DATA_SETS)


def is_small(name: str) -> bool:
  """Whether a data set of that name has small pictures that are made here. Raises UserError as `check_name`."""
  check_name(name)
  return name in DATA_SETS and DATA_SETS[name].small


def check_splits(dataset: str, splits: Iterable[str], data_dir: str | os.PathLike) -> None:
  """Raises UserError for a data set or splits that do not exist, without reading any data."""
  data_set, partition = find(dataset, data_dir)
  if unknown := [split for split in splits if split not in partition.splits]:
    whose = f'{data_set.name} ({partition.name})' if partition.name else data_set.name
    raise UserError(f'split {", ".join(map(repr, unknown))} is unknown; {whose} has {", ".join(partition.splits)}')


def check_data(dataset: str, data_dir: str | os.PathLike, splits: Iterable[str]) -> None:
  """Raises UserError if the data is not prepared or lacks a split; reads no samples."""
  data_set, partition = find(dataset, data_dir)
  for split in splits:
    data_set.reader.check(data_set, partition, data_dir, split)


def vocabulary(dataset: str, init_from: str = '') -> Path:
  """The WordPiece vocabulary that a data set's sentences are read with.

  That of the model `init_from` (a name or folder) that training starts from; shapes have their own for a start without
  one. Raises UserError where there is none.
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
  dataset: str, data_dir: str | Path, split: str, *, scenes: Mapping[str, Any] | None = None, in_memory: bool = False
) -> ReferringSource:
  """Opens one split; shapes are generated on the first call.

  Args:
    dataset: one of NAMES; 'refcocog/google' for another split-by than the usual one; or an own data set's name.
    data_dir: folder of prepared data sets.
    split: one of the data set's, see `DATA_SETS`.
    scenes: changes to the defaults of shapes.ScenesConfig; of shapes alone.
    in_memory: keep decoded pixels; for small images that are visited many times.

  Raises:
    UserError: unknown data set or split, or one that has to be prepared first.
  """
  check_splits(dataset, [split], data_dir)
  data_set, partition = find(dataset, data_dir)
  settings = {'scenes': scenes} if data_set.small else {}
  return data_set.reader.open(data_set, partition, data_dir, split, in_memory=in_memory, **settings)


def size(dataset: str, data_dir: str | os.PathLike, split: str) -> Counts | None:
  """Size of a split without reading samples: of the prepared data, else as published; None if unknown."""
  data_set, partition = find(dataset, data_dir)
  return data_set.reader.size(data_set, partition, data_dir, split)
