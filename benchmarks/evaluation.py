"""Measures the time that shared image embeddings save the text baseline: python benchmarks/evaluation.py --limit=2000

Evaluates the text baseline with random weights on shapes, with and without sharing, and L-DIT, which cannot share, in
turns. `--photographs=40` uses 4 images of 640 x 480 in RefCOCO's formats instead, with about 7 expressions each. Prints
one JSON line: numbers of images and samples, seconds (median over turns; minimum and maximum as `spread`), samples per
second, and whether all pixel counts of the baseline are equal with and without sharing.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import jax
import numpy as np
from flax import nnx

from benchmarks import photographs
from ditsam_jax.data import datasets
from ditsam_jax.data.referring import ReferringSource
from ditsam_jax.evaluation.evaluator import evaluate_split
from ditsam_jax.evaluation.forward import forward_of
from ditsam_jax.evaluation.results import Results
from ditsam_jax.models.config import PRESETS, DitSamConfig
from ditsam_jax.models.ditsam import DitSam
from ditsam_jax.tokenization import Tokenizer


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--model', choices=PRESETS, default='tiny')
  parser.add_argument('--data-dir', default='data')
  parser.add_argument('--photographs', type=int, metavar='N', help='make N, evaluate a tenth of them; default: shapes')
  parser.add_argument('--limit', type=int, help='number of samples, spread over all images; default: all')
  parser.add_argument('--batch-size', type=int, default=64)
  parser.add_argument('--turns', type=int, default=3)
  options = parser.parse_args()
  config = PRESETS[options.model](fusion='none')
  with tempfile.TemporaryDirectory() as folder:
    if options.photographs:
      photographs.write(Path(folder), options.photographs)
      source, tokenizer = photographs.open_prepared(Path(folder), 'val', config.max_text_tokens)
    else:
      source = datasets.open_split('shapes', options.data_dir, 'test')
      tokenizer = Tokenizer(datasets.vocabulary('shapes'), config.max_text_tokens)
    print(
      json.dumps(
        {'model': options.model, 'device': jax.devices()[0].device_kind, **measure(options, config, source, tokenizer)}
      )
    )


def measure(options: argparse.Namespace, config: DitSamConfig, source: ReferringSource, tokenizer: Tokenizer) -> dict:
  """Returns the figures to print."""
  baseline = DitSam(config, rngs=nnx.Rngs(0))
  ldit = DitSam(PRESETS[options.model](fusion='layer_wise'), rngs=nnx.Rngs(0))
  ways = {'shared': forward_of(baseline), 'alone': forward_of(baseline, share_images=False), 'ldit': forward_of(ldit)}

  def results(way: str, limit: int | None) -> Results:
    return evaluate_split(
      ways[way], source, tokenizer, config, batch_size=options.batch_size, limit=limit, progress=False
    )

  seconds, found = {way: [] for way in ways}, {}
  for way in ways:
    results(way, 8)  # compiles
  for _ in range(options.turns):
    for way in ways:
      started = time.perf_counter()
      found[way] = results(way, options.limit)
      seconds[way].append(time.perf_counter() - started)
  medians = {way: statistics.median(turns) for way, turns in seconds.items()}
  shared, alone = (found[way].overlaps.values() for way in ('shared', 'alone'))
  samples = len(found['shared'].samples)
  return {
    'samples': samples,
    'images': len({sample.image_id for sample in found['shared'].samples}),
    **{f'seconds_{way}': round(median, 2) for way, median in medians.items()},
    **{f'samples_per_s_{way}': round(samples / median, 2) for way, median in medians.items()},
    'spread': {way: [round(min(turns), 2), round(max(turns), 2)] for way, turns in seconds.items()},
    'saved_percent': round(100 * (1 - medians['shared'] / medians['alone']), 1),
    'equal': all(np.array_equal(*pair) for pair in zip(shared, alone)),
    'mIoU': round(found['shared'].miou, 3),
  }


if __name__ == '__main__':
  main()
