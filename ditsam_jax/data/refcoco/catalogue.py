"""What is known of the four data sets before reading them: names, splits, sizes, where they are kept."""

import os
from pathlib import Path
from typing import NamedTuple

from ditsam_jax.errors import UserError

VERSION = '1.0.0'


class Counts(NamedTuple):
  """How much a data set or a split holds."""

  images: int = 0
  objects: int = 0  # refs; in gRefCOCO a ref stands for none, one or several objects
  expressions: int = 0
  multi_target: int = 0  # of the expressions, gRefCOCO only
  no_target: int = 0


# Names, and by whom they were split; the first is what papers report.
SPLIT_BY = {
  'refcoco': ('unc', 'google'),
  'refcoco+': ('unc',),
  'refcocog': ('umd', 'google'),
  'grefcoco': ('unc',),
}

# Images and objects of every split, from the catalogue of TensorFlow Datasets (ref_coco); of gRefCOCO's no such
# numbers were published.
SPLITS = {
  ('refcoco', 'unc'): {'train': (16994, 42404), 'val': (1500, 3811), 'testA': (750, 1975), 'testB': (750, 1810)},
  ('refcoco', 'google'): {'train': (19213, 40000), 'val': (4559, 5000), 'test': (4527, 5000)},
  ('refcoco+', 'unc'): {'train': (16992, 42278), 'val': (1500, 3805), 'testA': (750, 1975), 'testB': (750, 1798)},
  ('refcocog', 'umd'): {'train': (21899, 42226), 'val': (1300, 2573), 'test': (2600, 5023)},
  ('refcocog', 'google'): {'train': (24698, 44822), 'val': (4650, 5000)},
  ('grefcoco', 'unc'): {'train': None, 'val': None, 'testA': None, 'testB': None},
}

# The whole data set. An image that the google partitions have in two splits counts once.
PUBLISHED = {
  'refcoco': Counts(19_994, 50_000, 142_209),
  'refcoco+': Counts(19_992, 49_856, 141_564),
  'refcocog': Counts(25_799, 49_822, 95_010),
  'grefcoco': Counts(19_994, 0, 278_232, 80_022, 32_202),
}
# RefCOCO's authors print 142,209; the splits that others print (120,624, 10,834, 5,657, 5,095) make one more. Of what
# gRefCOCO's paper counts its authors keep some 6 % for challenges, and do not say
# how many of the rest have several targets or none.
ALSO_COMPLETE = {'refcoco': 142_210, 'grefcoco': 259_859}


def parse(name: str) -> tuple[str, str]:
  """'refcocog' or 'refcocog/google' as name and split-by. Raises UserError for unknown ones."""
  dataset, _, split_by = name.partition('/')
  if dataset not in SPLIT_BY:
    raise UserError(f'data set {dataset!r} is unknown; choose one of {", ".join(SPLIT_BY)}')
  known = SPLIT_BY[dataset]
  if split_by and split_by not in known:
    raise UserError(f'{dataset} is not split by {split_by!r}; choose {" or ".join(known)}')
  return dataset, split_by or known[0]


def tfds_name(dataset: str) -> str:
  """The name in TensorFlow Datasets, which takes letters, digits and underscores only."""
  return dataset.replace('+', '_plus')


def folder(data_dir: str | os.PathLike, dataset: str, split_by: str) -> Path:
  """Where the prepared data set is, or will be."""
  return Path(data_dir) / tfds_name(dataset) / split_by / VERSION


def tfds_ref_coco(data_dir: str | os.PathLike, dataset: str, split_by: str) -> Path | None:
  """TFDS' own preparation of the same data, where the user has one; from 1.1.0 on it holds masks."""
  config = f'{dataset.replace("+", "plus")}_{split_by}'
  versions = sorted(Path(data_dir).glob(f'ref_coco/{config}/1.[1-9].*'))
  return versions[-1] if versions else None


def compare(dataset: str, split_by: str, splits: dict[str, Counts], whole: Counts) -> list[str]:
  """What differs from the published sizes, a line each; empty for a complete data set."""
  differences = []
  for split, expected in SPLITS[dataset, split_by].items():
    found = splits.get(split, Counts())
    if expected is None:
      differences += [] if found.images else [f'{split}: no images']
      continue
    differences += [
      f'{split}: {found[i]:,} of {number:,} {Counts._fields[i]}'
      for i, number in enumerate(expected)
      if found[i] != number
    ]
  alike = whole.expressions == ALSO_COMPLETE.get(dataset)
  for name, found, expected in zip(Counts._fields, whole, PUBLISHED[dataset]):
    of_expressions = name not in ('images', 'objects')
    if expected and found != expected and not (alike and of_expressions):
      kind = f'{name.replace("_", "-")} expressions' if name.endswith('target') else name
      differences.append(f'in all: {found:,} of {expected:,} {kind}')
  if dataset == 'grefcoco' and differences and not alike:
    differences.append(
      "these are the paper's numbers; the grefs(unc).json that its authors gave out in 2024 had "
      f'{ALSO_COMPLETE[dataset]:,} expressions, the rest being kept for challenges'
    )
  return differences
