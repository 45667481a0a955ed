"""docs/data.md agrees with the declarations of RefCOCO and its relatives, and with the limits."""

from pathlib import Path

import pytest

from ditsam_jax import limits, tokenization
from ditsam_jax.data.refcoco.catalogue import FAMILY

PAGE = (Path(__file__).parents[2] / 'docs' / 'data.md').read_text(encoding='utf-8')


def table_row(data_set) -> str:
  default, *others = data_set.partitions
  names = ', '.join(f'`{partition.name}`' for partition in data_set.partitions)
  splits = ', '.join(default.splits)
  for other in others:
    splits += f' ({other.name}: {", ".join(other.splits)})'
  file = f'grefs({default.name}).json' if data_set.generalised else f'refs({default.name}).p'
  return f'| `{data_set.name}` | {names} | {splits} | `{file}` |'


def test_the_table_of_data_sets_matches_the_declarations():
  table = PAGE.split('| `--dataset` |')[1].split('\n\n')[0].splitlines()[2:]
  assert table == [table_row(data_set) for data_set in FAMILY.values()]


@pytest.mark.parametrize(
  'sentence',
  [
    f"gRefCOCO's paper counts {FAMILY['grefcoco'].whole.expressions:,} expressions",
    f'the `grefs(unc).json` of 2024 has {FAMILY["grefcoco"].also_complete:,}',
    f'outside 1 to {limits.MAX_PIXELS:,} pixels',
    f'The limit is {limits.MAX_PIXELS:,} pixels',
    f'more than {limits.MAX_OBJECTS:,} per image',
    f'more than {tokenization.MAX_TEXT_BYTES:,} bytes; more than {limits.MAX_SENTENCES:,} per ref',
    f'`--config.data.threads` (1 to {limits.MAX_THREADS}) and `--config.data.processes` (0 to {limits.MAX_PROCESSES})',
  ],
)
def test_figures_match_the_code(sentence):
  assert sentence in ' '.join(PAGE.split())
