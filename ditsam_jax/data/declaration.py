"""Declarations of data sets: everything known before reading them.

`data/datasets.py` lists them: the config, the commands' help, the messages and docs/config.md know no other list.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ditsam_jax.errors import UserError
from ditsam_jax.fields import did_you_mean
from ditsam_jax.storage.files import read_json

VERSION = '1.0.0'  # of the record


class Counts(NamedTuple):
  """Size of a data set or split."""

  images: int = 0
  objects: int = 0  # refs; in gRefCOCO a ref stands for none, one or several objects
  expressions: int = 0
  multi_target: int = 0  # of the expressions, gRefCOCO only
  no_target: int = 0


@dataclasses.dataclass(frozen=True)
class Partition:
  """One division of a data set into splits, named after its authors, as for RefCOCO and relatives."""

  name: str  # '' where there is one way alone
  splits: Mapping[str, tuple[int, int] | None]  # name -> published images and objects, None where nobody says


class Reader(NamedTuple):
  """Functions that open a data set; all three take (data set, partition, data_dir, split)."""

  open: Callable[..., Any]  # and in_memory=, scenes= where it is small -> a ReferringSource; raises UserError
  check: Callable[
    ..., None
  ]  # raises UserError where the data is not there and is not made on opening; reads none of it
  size: Callable[..., Counts | None]  # of the data that is there, else as published, None if unknown; reads none of it


@dataclasses.dataclass(frozen=True)
class DataSet:
  """See the module."""

  name: str  # what users write
  title: str
  partitions: tuple[Partition, ...]  # the first is what papers report, and the default
  reader: Reader
  whole: Counts = Counts()  # published sizes of all splits together; zeros where nobody says
  also_complete: int = 0  # expressions that a complete download may have instead, 0 for none
  note: str = ''  # told where the sizes differ from those published
  generalised: bool = False  # an expression may mean several objects, or none
  vocabulary: Path | None = None  # that its sentences are read with; None: that of the model training starts from
  small: bool = False  # small pictures made here: trained on with the small model and the short recipe

  def partition(self, name: str = '') -> Partition:
    """A partition by name, '' for the default. Raises KeyError."""
    return {partition.name: partition for partition in self.partitions}[name] if name else self.partitions[0]

  @property
  def splits(self) -> tuple[str, ...]:
    """Of all partitions."""
    return tuple(dict.fromkeys(split for partition in self.partitions for split in partition.splits))


def named(name: str, known: Mapping[str, DataSet]) -> tuple[DataSet, Partition]:
  """'refcocog' or 'refcocog/google' as data set and partition. Raises UserError for unknown ones."""
  own, slash, split_by = name.partition('/')
  if own not in known:
    raise UserError(f'data set {own!r} is unknown; {did_you_mean(own, known)}choose one of {", ".join(known)}')
  data_set = known[own]
  try:
    return data_set, data_set.partition(split_by)
  except KeyError:
    choices = ' or '.join(partition.name for partition in data_set.partitions)
    raise UserError(f'{own} is not split by {split_by!r}; choose {choices or repr(own)}') from None


def prepared_folder(data_dir: str | os.PathLike, name: str, split_by: str = '') -> Path:
  """Where a prepared data set is, or will be; `name` is the one in TFDS."""
  return Path(data_dir, name, split_by, VERSION)


def counted(folder: Path) -> dict[str, Counts]:
  """Sizes of the splits, as `ditsam_jax.prepare` counted them; empty where it did not prepare that folder."""
  try:
    splits = read_json(folder / 'metadata.json')['splits']
    return {name: Counts(**counts) for name, counts in splits.items()}
  except (UserError, KeyError, TypeError, AttributeError):  # not prepared, or by TFDS
    return {}
