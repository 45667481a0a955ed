"""Automatic mask generation beside Meta's own generator: python benchmarks/everything.py --turns=1

Both have the same random weights, compute in f32 and find everything in one photograph, from the pixels to the records,
each in a process of its own, one after the other. The thresholds keep a quarter of the masks by predicted IoU and half
of those by stability, about what a trained SAM's do. Prints one JSON line: seconds of both (median, and all of them),
how many times faster ditsam_jax is, the most memory of both in GB (weights and libraries included), and how many masks
both found and agree on (IoU of at least 0.99, scores within 1e-4).

Masks of random weights are as wide as the image, so crops drop nearly all of them, and suppression leaves few. With
--mask-share=0.0001, the threshold of masks, in both, is the logit that one pixel in 10,000 exceeds: spots, of which
crops and suppression keep some.

Smaller, to try it: --size=tiny --points-per-side=8
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import numpy as np
from PIL import Image

from benchmarks.measuring import peak_of_process, timed
from ditsam_jax.geometry.letterbox import logit
from ditsam_jax.geometry.masks import decode_rle
from ditsam_jax.models.config import PRESETS, DitSamConfig, sam
from ditsam_jax.storage.description import read_config

SIDES = ('ditsam_jax', 'segment_anything')
OFFSET = 0.02  # of the stability score: logits of random weights are small
FEW = [
  np.stack(np.meshgrid([0.2, 0.5, 0.8], [0.2, 0.5, 0.8]), -1).reshape(-1, 2)
]  # points, to compile and to calibrate


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__.split('\n')[0], epilog=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--size', choices=PRESETS, default='vit_b')
  parser.add_argument('--points-per-side', type=int, default=32)
  parser.add_argument('--crop-n-layers', type=int, default=0)
  parser.add_argument('--box-nms-thresh', type=float, default=0.7, help='1 keeps all: masks of random weights are wide')
  parser.add_argument('--kept-by-iou', type=float, default=0.25, help='share of the masks')
  parser.add_argument('--kept-by-stability', type=float, default=0.5, help='share of those kept by predicted IoU')
  parser.add_argument('--mask-share', type=float, help='pixels above the threshold of masks (default: logits above 0)')
  parser.add_argument('--turns', type=int, default=1, help='timed, after one on a few points that is not')
  parser.add_argument('--part', choices=('prepare', *SIDES), help='what a process does with --folder; not for people')
  parser.add_argument('--folder', type=Path)
  options = parser.parse_args()
  if options.part == 'prepare':
    prepare(options, sam(PRESETS[options.size]()))
  elif options.part:
    run_side(options, sam(PRESETS[options.size]()))
  else:
    compare(options)


def compare(options: argparse.Namespace) -> None:
  """Runs the parts one after the other and prints what came of them."""
  with tempfile.TemporaryDirectory() as folder:
    for part in ('prepare', *SIDES):
      subprocess.run([sys.executable, __file__, *sys.argv[1:], f'--part={part}', f'--folder={folder}'], check=True)
    ours, theirs = (json.loads(Path(folder, f'{side}.json').read_text()) for side in SIDES)
  row = {
    'size': options.size,
    'points': options.points_per_side**2,
    'crop_n_layers': options.crop_n_layers,
    'seconds': statistics.median(ours['seconds']),
    'seconds_meta': statistics.median(theirs['seconds']),
    'times_as_fast': round(statistics.median(theirs['seconds']) / statistics.median(ours['seconds']), 2),
    'all_seconds': [ours['seconds'], theirs['seconds']],
    'peak_GB': ours['peak_GB'],
    'peak_GB_meta': theirs['peak_GB'],
    'masks': len(ours['records']),
    'masks_meta': len(theirs['records']),
    'agreed': agreed(ours['records'], theirs['records']),
  }
  print(json.dumps(row))


def prepare(options: argparse.Namespace, config: DitSamConfig) -> None:
  """One SAM in both formats, an image, and thresholds that keep what they should."""
  import torch

  import ditsam_jax
  from benchmarks.inference import converted, photograph
  from ditsam_jax.convert import names
  from ditsam_jax.convert.torch_peer import Peer

  torch.manual_seed(0)
  peer = Peer(config).eval()
  image = photograph(config.image_size * 3 // 4, config.image_size)
  if options.mask_share is not None:
    config = dataclasses.replace(
      config, mask_threshold=threshold_of(converted(peer, config), image, options.mask_share)
    )
  model = converted(peer, config)
  ditsam_jax.save(options.folder / 'model', model)
  torch.save({names.meta_name(name): tensor for name, tensor in peer.state_dict().items()}, options.folder / 'sam.pth')
  Image.fromarray(image).save(options.folder / 'image.png')
  open_to_all = dict(pred_iou_thresh=0, stability_score_thresh=0, stability_score_offset=OFFSET, box_nms_thresh=1.0)
  generator = ditsam_jax.SamAutomaticMaskGenerator(
    model, None, point_grids=FEW, output_mode='coco_rle', dtype='float32', **open_to_all
  )
  found = generator.generate(image)
  iou = float(np.quantile([record['predicted_iou'] for record in found], 1 - options.kept_by_iou))
  stable = [each['stability_score'] for each in found if each['predicted_iou'] > iou and each['area']]
  settings = {
    'pred_iou_thresh': max(iou, 1e-6),  # 0 and below would keep all
    'stability_score_thresh': float(np.quantile(stable, 1 - options.kept_by_stability)),
    'stability_score_offset': OFFSET,
    'box_nms_thresh': options.box_nms_thresh,
    'output_mode': 'coco_rle',
  }
  (options.folder / 'settings.json').write_text(json.dumps(settings))


def threshold_of(model, image: np.ndarray, share: float) -> float:
  """The probability that this share of the pixels exceeds, in the masks of FEW points."""
  import ditsam_jax

  view = ditsam_jax.Segmenter.from_model(model, dtype='float32').look(image)
  logits = [view(points=[point], multimask=True).logits for point in FEW[0] * image.shape[1::-1]]
  return float(1 / (1 + np.exp(-np.median([np.quantile(each, 1 - share) for each in np.concatenate(logits)]))))


def run_side(options: argparse.Namespace, config: DitSamConfig) -> None:
  """Times one side, and notes what it found and the memory it took."""
  settings = json.loads((options.folder / 'settings.json').read_text())
  image = np.asarray(Image.open(options.folder / 'image.png'))
  if options.part == 'ditsam_jax':
    import ditsam_jax

    model = ditsam_jax.load(options.folder / 'model')
    generator_of = lambda **more: ditsam_jax.SamAutomaticMaskGenerator(model, dtype='float32', **settings, **more)
  else:
    package, model = meta_sam(config, options.folder / 'sam.pth')
    model.mask_threshold = logit(read_config(options.folder / 'model').mask_threshold)
    generator_of = lambda **more: package.SamAutomaticMaskGenerator(model, **settings, **more)
  generator_of(points_per_side=None, point_grids=FEW).generate(image)
  generator = generator_of(points_per_side=options.points_per_side, crop_n_layers=options.crop_n_layers)
  records = []
  seconds = timed(lambda: records.append(generator.generate(image)), options.turns, warm=True)
  result = {'seconds': [round(each, 2) for each in seconds], 'peak_GB': peak_of_process(), 'records': records[-1]}
  (options.folder / f'{options.part}.json').write_text(json.dumps(result))


def meta_sam(config: DitSamConfig, file: Path):
  """segment_anything and its model; torchvision, which it imports, need not be there."""
  import torch

  from tests.meta_sam import build_meta_sam, stand_in_for_torchvision

  stand_in_for_torchvision()
  import segment_anything

  return segment_anything, build_meta_sam(segment_anything, config, torch.load(file, weights_only=True))


def agreed(ours: list[dict], theirs: list[dict]) -> int:
  """How many of their masks have one of ours with the same scores and pixels."""

  def same(one: dict, other: dict) -> bool:
    if any(abs(one[score] - other[score]) > 1e-4 for score in ('predicted_iou', 'stability_score')):
      return False
    masks = [decode_rle(record['segmentation']) for record in (one, other)]
    return np.count_nonzero(masks[0] & masks[1]) >= 0.99 * np.count_nonzero(masks[0] | masks[1])

  return sum(any(same(record, other) for other in ours) for record in theirs)


if __name__ == '__main__':
  main()
