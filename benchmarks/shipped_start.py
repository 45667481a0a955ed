"""Makes a start for the shipped `shapes` from a predecessor: python benchmarks/shipped_start.py OLD_MODEL NEW_FOLDER

The new model reads patches of 8 pixels. Positions are interpolated to its grid, and words that the vocabulary gained
start from the word they stand for. The patch kernel of the first predecessor (in this repository's history up to 0.1.0:
ditsam_jax/pretrained/shapes), which has 16 pixels, is resized to 8 as in FlexiViT (arXiv 2212.08013).
"""

import argparse
import dataclasses
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import numpy as np
from flax import nnx

from ditsam_jax.data.shapes.expressions import vocabulary
from ditsam_jax.data.shapes.rephrasing import SYNONYMS
from ditsam_jax.models.config import sharp
from ditsam_jax.models.ditsam import DitSam
from ditsam_jax.models.weights import weights_of
from ditsam_jax.ops.resize import resize_matrix
from ditsam_jax.storage import saved_model
from ditsam_jax.storage.description import read_description

WORDS = 'text_encoder.embeddings.word_embeddings.embedding'


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('old', help='the predecessor')
  parser.add_argument('new', help='folder of the start')
  parser.add_argument('--image-size', type=int, default=96, help='pixels, a multiple of 8 (default: 96)')
  options = parser.parse_args()
  patch, grid = sharp().image_encoder.patch_size, options.image_size // sharp().image_encoder.patch_size
  encoder = dataclasses.replace(sharp().image_encoder, pretrain_grid=grid)
  config = sharp(fusion='layer_wise', image_size=options.image_size, image_encoder=encoder)
  weights = {name: np.asarray(array, np.float32) for name, array in saved_model.read_weights(options.old).items()}
  kernel = weights['image_encoder.patch_embed.kernel']
  # <new kernel, small patch> = <old kernel, the patch enlarged bilinearly>
  enlarge = resized(np.eye(patch), len(kernel), 0)
  weights['image_encoder.patch_embed.kernel'] = np.einsum('ai,bj,abcd->ijcd', enlarge, enlarge, kernel)
  place = weights['image_encoder.pos_embed']
  weights['image_encoder.pos_embed'] = resized(resized(place, grid, 0), grid, 1)
  for name in weights:
    if 'rel_pos' in name:
      weights[name] = resized(weights[name], 2 * grid - 1, 0)
  weights[WORDS] = extended(weights[WORDS], Path(options.old, 'vocab.txt').read_text().split('\n')[:-1], config)
  expected = {name: variable.shape for name, variable in weights_of(DitSam(config, rngs=nnx.Rngs(0))).items()}
  assert {name: array.shape for name, array in weights.items()} == expected
  saved_model.write(
    options.new, config, weights, vocabulary=vocabulary(rephrased=True), data=read_description(options.old)['data']
  )


def resized(x: np.ndarray, count: int, axis: int) -> np.ndarray:
  """Resizes one axis linearly, with half-pixel centres, as the model resizes its tables."""
  matrix = resize_matrix(x.shape[axis], count, 'linear')
  return np.moveaxis(np.tensordot(matrix, x, axes=(1, axis)), 0, axis)


def extended(table: np.ndarray, old_words: list[str], config) -> np.ndarray:
  """Returns the table [V, C] of the new vocabulary."""
  meant = {said: name for name, ways in SYNONYMS.items() for said in ways[1:]}
  noise = np.random.default_rng(0).normal(
    0, table[: len(old_words)].std(), (config.text_encoder.vocab_size, table.shape[1])
  )
  rows = noise.astype(np.float32)
  for row, word in zip(rows, vocabulary(rephrased=True)):
    if word in old_words:
      row[:] = table[old_words.index(word)]
    elif meant.get(word) in old_words:
      row[:] = table[old_words.index(meant[word])] + 0.1 * row
  return rows


if __name__ == '__main__':
  main()
