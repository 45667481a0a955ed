"""Everything that a phrase names, on shapes: python benchmarks/phrases.py --scenes=150

Phrases about scenes of a split, made as `ditsam_jax.data.shapes.phrases` makes them, name 0 to 5 shapes. Prints one
JSON line: COCO's AP of the instances, how often as many are found as there are targets (by number of targets too), and
gRefCOCO's scores of their union; and beside it the same of two simple ways, with the same model: the one mask that the
sentence alone gives (`sentence`), and its pieces that touch nowhere (`pieces`). `truth` is the generator with the true
union in place of the sentence's mask: what finding single objects loses, apart from reading.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import cv2
import numpy as np

import ditsam_jax
from ditsam_jax.data.datasets import scenes_config
from ditsam_jax.data.shapes import phrases
from ditsam_jax.data.shapes.builder import described_scene
from ditsam_jax.evaluation.instances import Answer, instance_rates, union_of
from ditsam_jax.geometry.masks import encode_rle

SMALLEST = 20  # pixels of a piece


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--checkpoint', default='shapes', help='finds objects from points')
  parser.add_argument('--text-checkpoint', default='shapes', help='reads phrases')
  parser.add_argument('--split', choices=('val', 'test'), default='test')
  parser.add_argument('--scenes', type=int, default=150)
  parser.add_argument('--phrases', type=int, default=6, help='of a scene')
  parser.add_argument('--points-per-side', type=int, default=16)
  parser.add_argument('--pred-iou-thresh', type=float, default=0.75)
  parser.add_argument('--stability-score-thresh', type=float, default=0.85)
  options = parser.parse_args()
  settings = {
    'points_per_side': options.points_per_side,
    'pred_iou_thresh': options.pred_iou_thresh,
    'stability_score_thresh': options.stability_score_thresh,
    'output_mode': 'coco_rle',
    'text_model': options.text_checkpoint,
  }
  generator = ditsam_jax.SamAutomaticMaskGenerator(options.checkpoint, **settings)
  segmenter = ditsam_jax.Segmenter(options.text_checkpoint)
  config, rng = scenes_config({}), np.random.default_rng(0)
  asked, images = [], []
  for index in range(options.scenes):
    scene, _ = described_scene(config, options.split, index)
    masks = [encode_rle(mask) for mask in scene.masks]
    for phrase in phrases(scene.shapes, config.image_size, options.phrases, rng):
      asked.append((phrase, [masks[i] for i in phrase.targets]))
      images.append(scene.image)
  texts = [phrase.text for phrase, _ in asked]
  list(generator.stream([(images[0], texts[0])]))  # compiles
  started = time.perf_counter()
  found = list(generator.stream(zip(images, texts)))
  seconds = time.perf_counter() - started
  reading = TrueUnions(options.checkpoint, **settings)
  reading.unions = (union_of(targets, image.shape[:2]) for image, (_, targets) in zip(images, asked))
  read = list(reading.stream(zip(images, texts)))
  whole = segmenter.many(zip(images, texts))
  answers = {
    'generator': [of_records(records) for records in found],
    'truth': [of_records(records) for records in read],
    'sentence': [([each.rle()] if each.area else [], [each.score] * bool(each.area)) for each in whole],
    'pieces': [pieces(each.mask, each.score) for each in whole],
  }
  scores = {
    name: instance_rates([Answer(targets, *given) for (_, targets), given in zip(asked, all_given)])
    for name, all_given in answers.items()
  }
  print(
    json.dumps(
      {
        'phrases': len(asked),
        'by_targets': np.bincount([len(targets) for _, targets in asked]).tolist(),
        'seconds_a_phrase': round(seconds / len(asked), 3),
        **{name: {key: round(value, 1) for key, value in rates.items()} for name, rates in scores.items()},
      }
    )
  )


class TrueUnions(ditsam_jax.SamAutomaticMaskGenerator):
  """Takes true masks, in the order of the phrases, for those of the sentences."""

  unions: Iterator[np.ndarray]

  def _named(self, picture, prediction):
    return dataclasses.replace(super()._named(picture, prediction), mask=next(self.unions))


def of_records(records: list[dict]) -> tuple[list[dict], list[float]]:
  """Run lengths and scores of a generator's records."""
  return [each['segmentation'] for each in records], [each['predicted_iou'] for each in records]


def pieces(mask: np.ndarray, score: float) -> tuple[list[dict], list[float]]:
  """Run lengths of the parts of a mask that touch nowhere, and their scores."""
  count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
  some = [i for i in range(1, count) if stats[i, cv2.CC_STAT_AREA] >= SMALLEST]
  return [encode_rle(labels == i) for i in some], [score] * len(some)


if __name__ == '__main__':
  main()
