"""Declarations of RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO: names, splits, sizes, folders and readers."""

import os

from ditsam_jax.data.declaration import Counts, DataSet, Partition, Reader, counted, named, prepared_folder
from ditsam_jax.data.referring import ReferringSource, check_split
from ditsam_jax.errors import UserError
from ditsam_jax.storage.bucket import AnyPath
from ditsam_jax.storage.paths import any_path


def _locate(data_set: DataSet, partition: Partition, data_dir: str | os.PathLike) -> AnyPath:
  """Returns the folder written by `ditsam_jax.prepare`, or else by TFDS. Raises UserError with the command to run."""
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


def _split_in(where: AnyPath, split: str) -> str:
  """Returns a split's name in that folder; TFDS calls val 'validation'."""
  return 'validation' if split == 'val' and where.parts[-3] == 'ref_coco' else split


def _open(data_set: DataSet, partition: Partition, data_dir: str | os.PathLike, split: str, *, in_memory: bool):
  where = _locate(data_set, partition, data_dir)
  return ReferringSource(where, _split_in(where, split), in_memory=in_memory)


def _check(data_set: DataSet, partition: Partition, data_dir: str | os.PathLike, split: str) -> None:
  where = _locate(data_set, partition, data_dir)
  check_split(where, _split_in(where, split))


def _size(data_set: DataSet, partition: Partition, data_dir: str | os.PathLike, split: str) -> Counts | None:
  """Returns the counts by `ditsam_jax.prepare`, or else the published ones."""
  if counts := counted(folder(data_dir, data_set.name, partition.name)).get(split):
    return counts
  # The sizes of gRefCOCO's splits are unpublished; they are about as large as RefCOCO's.
  published = partition.splits.get(split) or FAMILY['refcoco'].partition().splits.get(split)
  return Counts(*published) if published else None


_READER = Reader(_open, _check, _size)

# Images and objects per split are from the TensorFlow Datasets catalogue (ref_coco); gRefCOCO's are unpublished. In the
# totals, an image that occurs in two splits of a google partition counts once.
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
      # Split sizes reported by others (120,624, 10,834, 5,657, 5,095) add up to one more than the authors' total.
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
      # The authors hold back some 6 % of the paper's expressions for challenges and do not say how many of the rest
      # have several targets or none.
      also_complete=259_859,
      note="these are the paper's numbers; the grefs(unc).json released by its authors in 2024 has 259,859 "
      'expressions, the rest being held back for challenges',
      generalised=True,
    ),
  )
}


def parse(name: str) -> tuple[str, str]:
  """Parses 'refcocog' or 'refcocog/google' into name and split-by. Raises UserError if unknown."""
  data_set, partition = named(name, FAMILY)
  return data_set.name, partition.name


def tfds_name(dataset: str) -> str:
  """Returns the name in TensorFlow Datasets, which allows only letters, digits and underscores."""
  return dataset.replace('+', '_plus')


def folder(data_dir: str | os.PathLike, dataset: str, split_by: str) -> AnyPath:
  """Returns the folder of the prepared data set, whether or not it exists."""
  return prepared_folder(data_dir, tfds_name(dataset), split_by)


def tfds_ref_coco(data_dir: str | os.PathLike, dataset: str, split_by: str) -> AnyPath | None:
  """Returns the folder of the data set as prepared by TFDS, if any; it has masks since version 1.1.0."""
  config = f'{dataset.replace("+", "plus")}_{split_by}'
  versions = sorted(any_path(data_dir).glob(f'ref_coco/{config}/1.[1-9].*'))
  return versions[-1] if versions else None


def compare(dataset: str, split_by: str, splits: dict[str, Counts], whole: Counts) -> list[str]:
  """Returns the differences from the published sizes, one per line; empty for a complete data set."""
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
      differences.append(f'total: {found:,} of {expected:,} {kind}')
  if known.note and differences and not alike:
    differences.append(known.note)
  return differences
