"""RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO, declared: names, splits, sizes, where they are kept, how they are read."""

import os
from pathlib import Path

from ditsam_jax.data.declaration import Counts, DataSet, Partition, Reader, counted, named, prepared_folder
from ditsam_jax.data.referring import ReferringSource, check_split
from ditsam_jax.errors import UserError


def _locate(data_set: DataSet, partition: Partition, data_dir: str | os.PathLike) -> Path:
  """Where `ditsam_jax.prepare` wrote a data set, else TFDS. Raises UserError, which says how to prepare it."""
  name, split_by = data_set.name, partition.name
  ours = folder(data_dir, name, split_by)
  if (ours / 'dataset_info.json').exists():
    return ours
  theirs = tfds_ref_coco(data_dir, name, split_by)
  if theirs and not ours.exists():
    return theirs
  raise UserError(
    f'data set {name!r} ({split_by}) is not prepared in {str(data_dir)!r}; with the official refs and '
    f"instances.json in ANNOTATIONS/{name}/ and COCO's train2014 images in IMAGES/ run: "
    f'python -m ditsam_jax.prepare --dataset={name} --split-by={split_by} --annotations=ANNOTATIONS '
    f'--images=IMAGES --data-dir={data_dir}'
  )


def _split_in(where: Path, split: str) -> str:
  """What a split is called there: TFDS calls one of them otherwise."""
  return 'validation' if split == 'val' and where.parts[-3] == 'ref_coco' else split


def _open(data_set: DataSet, partition: Partition, data_dir: str | os.PathLike, split: str, *, in_memory: bool):
  where = _locate(data_set, partition, data_dir)
  return ReferringSource(where, _split_in(where, split), in_memory=in_memory)


def _check(data_set: DataSet, partition: Partition, data_dir: str | os.PathLike, split: str) -> None:
  where = _locate(data_set, partition, data_dir)
  check_split(where, _split_in(where, split))


def _size(data_set: DataSet, partition: Partition, data_dir: str | os.PathLike, split: str) -> Counts | None:
  """By what `ditsam_jax.prepare` counted, else as published."""
  if counts := counted(folder(data_dir, data_set.name, partition.name)).get(split):
    return counts
  # gRefCOCO's splits, of which nobody published sizes, are about as large as RefCOCO's.
  published = partition.splits.get(split) or FAMILY['refcoco'].partition().splits.get(split)
  return Counts(*published) if published else None


_READER = Reader(_open, _check, _size)

# Images and objects of every split are from the catalogue of TensorFlow Datasets (ref_coco); of gRefCOCO's no such
# numbers were published. In the sizes of the whole an image that the google partitions have in two splits counts once.
FAMILY = {
  data_set.name: data_set
  for data_set in (
    DataSet(
      'refcoco',
      'RefCOCO',
      (
        Partition('unc', {'train': (16994, 42404), 'val': (1500, 3811), 'testA': (750, 1975), 'testB': (750, 1810)}),
        Partition('google', {'train': (19213, 40000), 'val': (4559, 5000), 'test': (4527, 5000)}),
      ),
      _READER,
      Counts(19_994, 50_000, 142_209),
      # The splits that others print (120,624, 10,834, 5,657, 5,095) make one more than its authors do.
      also_complete=142_210,
    ),
    DataSet(
      'refcoco+',
      'RefCOCO+',
      (Partition('unc', {'train': (16992, 42278), 'val': (1500, 3805), 'testA': (750, 1975), 'testB': (750, 1798)}),),
      _READER,
      Counts(19_992, 49_856, 141_564),
    ),
    DataSet(
      'refcocog',
      'RefCOCOg',
      (
        Partition('umd', {'train': (21899, 42226), 'val': (1300, 2573), 'test': (2600, 5023)}),
        Partition('google', {'train': (24698, 44822), 'val': (4650, 5000)}),
      ),
      _READER,
      Counts(25_799, 49_822, 95_010),
    ),
    DataSet(
      'grefcoco',
      'gRefCOCO',
      (Partition('unc', {'train': None, 'val': None, 'testA': None, 'testB': None}),),
      _READER,
      Counts(19_994, 0, 278_232, 80_022, 32_202),
      # Of what its paper counts its authors keep some 6 % for challenges, and do not say how many of the rest have
      # several targets or none.
      also_complete=259_859,
      note="these are the paper's numbers; the grefs(unc).json that its authors gave out in 2024 had 259,859 "
      'expressions, the rest being kept for challenges',
      generalised=True,
    ),
  )
}


def parse(name: str) -> tuple[str, str]:
  """'refcocog' or 'refcocog/google' as name and split-by. Raises UserError for unknown ones."""
  data_set, partition = named(name, FAMILY)
  return data_set.name, partition.name


def tfds_name(dataset: str) -> str:
  """The name in TensorFlow Datasets, which takes letters, digits and underscores only."""
  return dataset.replace('+', '_plus')


def folder(data_dir: str | os.PathLike, dataset: str, split_by: str) -> Path:
  """Where the prepared data set is, or will be."""
  return prepared_folder(data_dir, tfds_name(dataset), split_by)


def tfds_ref_coco(data_dir: str | os.PathLike, dataset: str, split_by: str) -> Path | None:
  """TFDS' own preparation of the same data, where the user has one; from 1.1.0 on it holds masks."""
  config = f'{dataset.replace("+", "plus")}_{split_by}'
  versions = sorted(Path(data_dir).glob(f'ref_coco/{config}/1.[1-9].*'))
  return versions[-1] if versions else None


def compare(dataset: str, split_by: str, splits: dict[str, Counts], whole: Counts) -> list[str]:
  """What differs from the published sizes, a line each; empty for a complete data set."""
  known, differences = FAMILY[dataset], []
  for split, expected in known.partition(split_by).splits.items():
    found = splits.get(split, Counts())
    if expected is None:
      differences += [] if found.images else [f'{split}: no images']
      continue
    differences += [
      f'{split}: {found[i]:,} of {number:,} {Counts._fields[i]}'
      for i, number in enumerate(expected)
      if found[i] != number
    ]
  alike = bool(known.also_complete) and whole.expressions == known.also_complete
  for name, found, expected in zip(Counts._fields, whole, known.whole):
    of_expressions = name not in ('images', 'objects')
    if expected and found != expected and not (alike and of_expressions):
      kind = f'{name.replace("_", "-")} expressions' if name.endswith('target') else name
      differences.append(f'in all: {found:,} of {expected:,} {kind}')
  if known.note and differences and not alike:
    differences.append(known.note)
  return differences
