"""What sharing image embeddings saves in the text baseline: python benchmarks/evaluation.py --limit=2000

A model of random weights is evaluated on shapes in both ways by turns. Prints one JSON line: the seconds of each way
(median of the turns), how many images and samples there are, and whether all pixel counts are equal.
"""

import argparse
import json
from pathlib import Path
import statistics
import sys
import time

sys.path[0] = str(Path(__file__).resolve().parents[1])

from flax import nnx
import jax
import numpy as np

from ditsam_jax.data import datasets
from ditsam_jax.data.tokenization import Tokenizer
from ditsam_jax.evaluation.evaluator import evaluate_split
from ditsam_jax.evaluation.forward import forward_of
from ditsam_jax.models.config import PRESETS
from ditsam_jax.models.ditsam import DitSam


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--model', choices=PRESETS, default='tiny')
  parser.add_argument('--data-dir', default='data')
  parser.add_argument('--limit', type=int, help='samples, spread over all images; default: all')
  parser.add_argument('--batch-size', type=int, default=64)
  parser.add_argument('--turns', type=int, default=3)
  options = parser.parse_args()
  config = PRESETS[options.model](fusion='none')
  model = DitSam(config, rngs=nnx.Rngs(0))
  source = datasets.open_split('shapes', options.data_dir, 'test')
  tokenizer = Tokenizer(datasets.vocabulary('shapes'), config.max_text_tokens)
  ways = {'shared': forward_of(model), 'alone': forward_of(model, share_images=False)}

  def results(way: str, limit: int | None):
    return evaluate_split(ways[way], source, tokenizer, config, batch_size=options.batch_size, limit=limit,
                          progress=False)
  seconds, found = {way: [] for way in ways}, {}
  for way in ways:
    results(way, options.batch_size)  # compiles
  for _ in range(options.turns):
    for way in ways:
      started = time.perf_counter()
      found[way] = results(way, options.limit)
      seconds[way].append(time.perf_counter() - started)
  medians = {way: statistics.median(turns) for way, turns in seconds.items()}
  shared, alone = (found[way].overlaps.values() for way in ('shared', 'alone'))
  print(json.dumps({
      'model': options.model, 'device': jax.devices()[0].device_kind,
      'samples': len(found['shared'].samples), 'images': len({sample.image_id for sample in found['shared'].samples}),
      **{f'seconds_{way}': round(median, 2) for way, median in medians.items()},
      'saved_percent': round(100 * (1 - medians['shared'] / medians['alone']), 1),
      'equal': all(np.array_equal(*pair) for pair in zip(shared, alone)), 'mIoU': round(found['shared'].miou, 3)}))


if __name__ == '__main__':
  main()
