"""Users' own data sets: names, folders, and declarations derived from the prepared data."""

import contextlib
import os
import re

from ditsam_jax.data.declaration import VERSION, Counts, DataSet, Partition, Reader, counted, prepared_folder
from ditsam_jax.data.referring import ReferringSource, check_split
from ditsam_jax.errors import UserError
from ditsam_jax.storage.files import read_json
from ditsam_jax.storage.paths import any_path

_NAME = re.compile(r'[a-z][a-z0-9_]{0,60}')  # names that TFDS accepts
OWN = 'own'  # key in metadata.json


def is_name(name: str) -> bool:
  """Returns whether TFDS accepts this name."""
  return bool(_NAME.fullmatch(name))


def find(name: str, data_dir: str | os.PathLike) -> DataSet | None:
  """Returns the declaration of a user's prepared data set; None if it is not prepared there."""
  folder = prepared_folder(data_dir, name)
  splits = counted(folder)
  if not splits or not (folder / 'dataset_info.json').exists():
    return None
  return DataSet(
    name,
    f'own data: {name}',
    (Partition('', {split: (counts.images, counts.objects) for split, counts in splits.items()}),),
    _READER,
    generalised=any(counts.no_target for counts in splits.values()),
  )


def prepared_names(data_dir: str | os.PathLike) -> list[str]:
  """Returns the names of the user's own data sets prepared in a folder."""
  found = []
  for metadata in sorted(any_path(data_dir).glob(f'*/{VERSION}/metadata.json'))[:1000]:
    with contextlib.suppress(UserError, TypeError):
      if OWN in read_json(metadata):
        found.append(metadata.parents[1].name)
  return found


def made_of(name: str, data_dir: str | os.PathLike) -> str:
  """Returns the hash of the annotations and options that a data set was prepared from; '' if unknown."""
  try:
    return str(read_json(prepared_folder(data_dir, name) / 'metadata.json')[OWN]['made_of'])
  except (UserError, KeyError, TypeError):
    return ''


def _open(data_set: DataSet, partition: Partition, data_dir: str | os.PathLike, split: str, *, in_memory: bool):
  del partition
  return ReferringSource(prepared_folder(data_dir, data_set.name), split, in_memory=in_memory)


def _check(data_set: DataSet, partition: Partition, data_dir: str | os.PathLike, split: str) -> None:
  del partition
  check_split(prepared_folder(data_dir, data_set.name), split)


def _size(data_set: DataSet, partition: Partition, data_dir: str | os.PathLike, split: str) -> Counts | None:
  del partition
  return counted(prepared_folder(data_dir, data_set.name)).get(split)


_READER = Reader(_open, _check, _size)
