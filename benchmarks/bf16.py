"""Measures the accuracy lost in bf16: python benchmarks/bf16.py --checkpoint=shapes --limit=1000

Prints one JSON line for the test split: the difference of the logits to f32 (relative RMS, and the largest difference
relative to the largest value), the IoU between the two masks, and the mIoU of both.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import jax.numpy as jnp
import numpy as np

from ditsam_jax.data import datasets
from ditsam_jax.data.evaluation_batches import evaluation_batches
from ditsam_jax.evaluation.forward import forward_of
from ditsam_jax.geometry.letterbox import logit
from ditsam_jax.models.weights import cast
from ditsam_jax.storage import saved_model
from ditsam_jax.storage.description import data_config, vocabulary_file
from ditsam_jax.tokenization import Tokenizer


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--checkpoint', default='shapes')
  parser.add_argument('--data-dir', default='data')
  parser.add_argument('--limit', type=int, default=1000, help='number of samples')
  options = parser.parse_args()
  wide, narrow = (saved_model.load(options.checkpoint) for _ in range(2))
  cast(narrow, jnp.bfloat16)
  config = wide.config
  trained_on = data_config(options.checkpoint)
  source = datasets.open_split(trained_on['dataset'], options.data_dir, 'test', scenes=trained_on.get('scenes'))
  tokenizer = Tokenizer(vocabulary_file(options.checkpoint), config.max_text_tokens)
  batches = evaluation_batches(
    source,
    tokenizer,
    image_size=config.image_size,
    pixel_mean=config.pixel_mean,
    pixel_std=config.pixel_std,
    batch_size=50,
    limit=options.limit,
  )
  forwards = forward_of(wide), forward_of(narrow)
  logits, truths = [], []
  for batch, _ in batches:
    valid = batch['valid']
    logits.append([np.asarray(forward(batch))[valid] for forward in forwards])
    truths.append(batch['mask'][valid].astype(bool))
  f32, bf16 = (np.concatenate(part) for part in zip(*logits))
  truth = np.concatenate(truths)
  masks = [x > logit(config.mask_threshold) for x in (f32, bf16)]
  difference = bf16 - f32
  print(
    json.dumps(
      {
        'checkpoint': options.checkpoint,
        'samples': len(truth),
        'logits_rms': round(float(np.sqrt(np.square(difference).mean() / np.square(f32).mean())), 5),
        'logits_largest': round(float(np.abs(difference).max() / np.abs(f32).max()), 4),
        'iou_of_masks': round(100 * iou(*masks), 2),
        'mIoU_f32': round(100 * iou(masks[0], truth), 2),
        'mIoU_bf16': round(100 * iou(masks[1], truth), 2),
      }
    )
  )


def iou(one: np.ndarray, other: np.ndarray) -> float:
  """Mean IoU of bool masks [N, h, w]; two empty masks have IoU 1."""
  intersection, union = ((one & other).sum((1, 2)), (one | other).sum((1, 2)))
  return float(np.where(union, intersection / np.maximum(union, 1), 1.0).mean())


if __name__ == '__main__':
  main()
