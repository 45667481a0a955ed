"""Measures how well a model segments everything on shapes: python benchmarks/shapes_everything.py --scenes=40

Segments everything in scenes of the test split with the generator's default thresholds. Prints one JSON line: the share
of shapes that a mask covers with an IoU of at least X (`recall`), the share of masks that cover a shape so, each shape
once (`precision`), masks and seconds a scene, and the areas of missed shapes.
"""

import argparse
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import numpy as np

import ditsam_jax
from ditsam_jax.data.datasets import scenes_config
from ditsam_jax.data.shapes.builder import described_scene

LEVELS = (0.5, 0.75, 0.9)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--checkpoint', default='sam_shapes_multimask')
  parser.add_argument('--scenes', type=int, default=500, help='of the test split')
  parser.add_argument('--points-per-side', type=int, default=32)
  parser.add_argument('--pred-iou-thresh', type=float, default=0.88)
  parser.add_argument('--stability-score-thresh', type=float, default=0.95)
  parser.add_argument('--crop-n-layers', type=int, default=0)
  parser.add_argument('--min-mask-region-area', type=int, default=0)
  options = parser.parse_args()
  settings = {name: value for name, value in vars(options).items() if name not in ('checkpoint', 'scenes')}
  generator = ditsam_jax.SamAutomaticMaskGenerator(options.checkpoint, **settings)
  scenes = [described_scene(scenes_config({}), 'test', index)[0] for index in range(options.scenes)]
  list(generator.stream([(scenes[0].image, None)]))  # compiles
  started = time.perf_counter()
  ious = [
    overlaps(scene.masks, [record['segmentation'] for record in records])
    for scene, records in zip(scenes, generator.stream((scene.image, None) for scene in scenes))
  ]
  seconds = time.perf_counter() - started
  shapes, masks = (sum(table.shape[axis] for table in ious) for axis in (0, 1))
  best = np.concatenate([table.max(1, initial=0) for table in ious])
  areas = np.concatenate([scene.masks.sum((1, 2)) for scene in scenes])
  row = {
    'scenes': len(scenes),
    'shapes': shapes,
    'recall': {level: round(100 * float((best >= level).mean()), 1) for level in LEVELS},
    'precision': {level: round(100 * matched(ious, level) / max(masks, 1), 1) for level in LEVELS},
    'masks_a_scene': round(masks / len(scenes), 2),
    'seconds_a_scene': round(seconds / len(scenes), 3),
    'median_area': float(np.median(areas)),
    'median_area_missed': float(np.median(areas[best < 0.75])) if (best < 0.75).any() else None,
  }
  print(json.dumps(row))


def overlaps(shapes: np.ndarray, masks: list[np.ndarray]) -> np.ndarray:
  """IoU f64 [n, m] of shapes bool [n, h, w] with m masks."""
  found = np.stack(masks).reshape(len(masks), -1).astype(np.float64) if masks else np.zeros((0, shapes[0].size))
  shapes = shapes.reshape(len(shapes), -1).astype(np.float64)
  both = shapes @ found.T
  return both / (shapes.sum(1)[:, None] + found.sum(1) - both)


def matched(ious: list[np.ndarray], level: float) -> int:
  """Masks that cover a shape, each shape counted once."""
  return sum(int((table.max(1, initial=0) >= level).sum()) for table in ious)


if __name__ == '__main__':
  main()
