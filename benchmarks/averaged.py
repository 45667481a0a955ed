"""Averages the weights of two models: python benchmarks/averaged.py MODEL OTHER NEW_FOLDER --share=0.5

Where training continued from a model, their average is often better than both (model soups, arXiv 2203.05482). The new
model has OTHER's vocabulary and description.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import numpy as np

from ditsam_jax.storage import saved_model
from ditsam_jax.storage.description import read_config, read_description, vocabulary_file
from ditsam_jax.storage.vocabulary import read_vocabulary


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('model')
  parser.add_argument('other', help='a model with the same config')
  parser.add_argument('folder', help='where the average is written')
  parser.add_argument('--share', type=float, default=0.5, help="the other model's share (default: 0.5)")
  options = parser.parse_args()
  config, description = read_config(options.other), read_description(options.other)
  if read_config(options.model) != config:
    sys.exit('error: the two models have different configs; only equal ones can be averaged')
  pieces, vocabulary = (list(read_vocabulary(vocabulary_file(name))) for name in (options.model, options.other))
  if pieces != vocabulary:
    sys.exit('error: the two models have different vocabularies; only equal ones can be averaged')
  weights, others = (saved_model.read_weights(name) for name in (options.model, options.other))
  mean = {
    name: (1 - options.share) * np.asarray(weights[name], np.float32) + options.share * np.asarray(other, np.float32)
    for name, other in others.items()
  }
  saved_model.write(
    options.folder,
    config,
    mean,
    vocabulary=vocabulary,
    data=description['data'],
    notes={name: note for name, note in description['notes'].items() if name != 'dtype'},  # the average is f32
    fresh=description['fresh'],
    assumed=description['assumed'],
  )


if __name__ == '__main__':
  main()
