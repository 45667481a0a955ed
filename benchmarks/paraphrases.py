"""Sentences in words and orders that no training data has: python benchmarks/paraphrases.py --checkpoint=shapes

Prints the mIoU, in percent, of the paraphrases in tests/data/shapes_paraphrases.tsv, written by hand about 300 shapes
of the test split, and of the same sentences in the words of the data set's grammar; over all and by kind. The second
author did not know how the training data is said in other words.
"""

import argparse
import collections
import csv
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import numpy as np

from ditsam_jax.data.datasets import scenes_config
from ditsam_jax.data.shapes.builder import described_scene
from ditsam_jax.inference.segmenter import Segmenter

WORDS = ('grammar', 'paraphrase', 'second')  # columns of the file


def ious(model: str) -> dict[str, dict[str, list[float]]]:
  """Returns IoU by WORDS and kind of expression."""
  with (ROOT / 'tests/data/shapes_paraphrases.tsv').open(encoding='utf-8') as file:
    rows = list(csv.DictReader(file, delimiter='\t'))
  scenes = {name: described_scene(scenes_config({}), 'test', int(name))[0] for name in {row['scene'] for row in rows}}
  segmenter, found = Segmenter(model), {}
  for words in WORDS:
    kinds = collections.defaultdict(list)
    for row, result in zip(rows, segmenter.many((scenes[row['scene']].image, row[words]) for row in rows)):
      target = scenes[row['scene']].masks[int(row['object'])]
      kinds[row['kind']].append((result.mask & target).sum() / (result.mask | target).sum())
    found[words] = dict(kinds)
  return found


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--checkpoint', default='shapes')
  for words, kinds in ious(parser.parse_args().checkpoint).items():
    parts = ', '.join(f'{kind} {100 * np.mean(values):.1f}' for kind, values in kinds.items())
    print(f'{words}: {100 * np.mean([value for values in kinds.values() for value in values]):.1f} ({parts})')


if __name__ == '__main__':
  main()
