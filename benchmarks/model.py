"""Compares L-DIT's forward pass and train step with PyTorch: python benchmarks/model.py --turns=2

Three sides take turns in separate processes: `ditsam_jax`; `pytorch`, the same model with the same weights; and
`segment_anything`, Meta's encoder at this size (global attention, no text) with its mask decoder, which is less work. A
train step consists of forward and backward pass, clipping, Adam and the moving average, as in the release. Prints one
JSON line per side and pass: seconds (median; minimum and maximum as `spread`), images per second, peak memory of the
process (of the device on GPUs), model FLOPs relative to `--peak-tflops` (MFU), and for ditsam_jax the speed-up over
each peer, the largest difference of the logits to PyTorch's relative to the largest value, and that of the losses.

On a GPU (PyTorch: bf16 autocast, fused attention, torch.compile):
  python benchmarks/model.py --batch-size=64 --dtype=bfloat16 --steps=20 --peak-tflops=989
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import dataclasses

import numpy as np

from benchmarks import model_sides
from ditsam_jax.models.config import PRESETS, DitSamConfig
from ditsam_jax.models.flops import forward_flops, training_flops

SIDES = ('ditsam_jax', 'pytorch', 'segment_anything')
TOLERANCE = {'float32': 1e-3, 'bfloat16': 5e-2}  # of the logits; if they differ more, timing them is pointless


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--model', choices=('tiny', 'vit_b', 'vit_l', 'vit_h'), default='vit_b')
  parser.add_argument('--batch-size', type=int, default=1)
  parser.add_argument('--dtype', choices=TOLERANCE, default='float32')
  parser.add_argument('--steps', type=int, default=3, help='timed steps, after a warm-up')
  parser.add_argument('--turns', type=int, default=2)
  parser.add_argument('--attention', default='auto', help='attention implementation of ditsam_jax')
  parser.add_argument('--remat', default='none', help='rematerialisation of ditsam_jax')
  parser.add_argument('--scan', action='store_true', help='make ditsam_jax scan over its blocks')
  parser.add_argument('--peak-tflops', type=float, help='peak of the device, for MFU')
  parser.add_argument('--side', choices=SIDES, help=argparse.SUPPRESS)
  parser.add_argument('--folder', type=Path, help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.side:
    print(json.dumps(model_sides.run(options, configured(options))))
    return
  with tempfile.TemporaryDirectory() as folder:
    for row in measure(options, Path(folder)):
      print(json.dumps(row), flush=True)


def configured(options: argparse.Namespace) -> DitSamConfig:
  """Returns the config without dropout, which would make results incomparable."""
  config = PRESETS[options.model](fusion_dropout=0.0)
  return dataclasses.replace(config, text_encoder=dataclasses.replace(config.text_encoder, dropout=0.0))


def measure(options: argparse.Namespace, folder: Path):
  """Yields the rows of both passes and all sides."""
  config = configured(options)
  prepare(options, config, folder)
  found = {side: [] for side in SIDES}
  for _ in range(options.turns):
    for side, results in found.items():
      printed = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], f'--side={side}', f'--folder={folder}'],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
      ).stdout
      results.append(json.loads(printed.strip().split('\n')[-1]))
  flops = {'forward': sum(forward_flops(config).values()), 'train': training_flops(config)}
  difference, loss_difference = agreement(folder, found)
  assert difference < TOLERANCE[options.dtype], f'the models disagree: {difference}'
  for name in ('forward', 'train'):
    medians = {
      side: statistics.median(sum((result[name] for result in results), [])) for side, results in found.items()
    }
    for side, results in found.items():
      seconds = sum((result[name] for result in results), [])
      row = {
        'pass': name,
        'side': side,
        'model': options.model,
        'batch_size': options.batch_size,
        'dtype': options.dtype,
        'device': results[0]['device'],
        'versions': results[0]['versions'],
        'seconds': round(medians[side], 4),
        'spread': [round(min(seconds), 4), round(max(seconds), 4)],
        'images_per_second': round(options.batch_size / medians[side], 3),
        'peak_gb': max(result['peak_gb'][name] for result in results),
      }
      if options.peak_tflops and side != 'segment_anything':
        row['mfu'] = round(flops[name] * options.batch_size / medians[side] / options.peak_tflops / 1e12, 3)
      if side == 'ditsam_jax':
        row |= {
          'times_faster_than': {peer: round(medians[peer] / medians[side], 2) for peer in SIDES[1:]},
          'logits_difference': float(f'{difference:.1e}'),
          'loss_difference': float(f'{loss_difference:.1e}'),
        }
      yield row


def prepare(options: argparse.Namespace, config: DitSamConfig, folder: Path) -> None:
  """Saves the weights of a random model for all sides, and one batch."""
  import torch

  from benchmarks.parity import random_peer
  from ditsam_jax.convert.torch_peer import random_inputs

  torch.save(random_peer(config).state_dict(), folder / 'model.pth')
  subprocess.run(
    [
      sys.executable,
      ROOT / 'convert' / 'torch_to_flax.py',
      f'--input={folder / "model.pth"}',
      f'--output={folder / "model"}',
      f'--fusion={config.fusion}',
      f'--image-size={config.image_size}',
      f'--text-heads={config.text_encoder.heads}',
      f'--decoder-heads={config.mask_decoder.heads}',
    ],
    check=True,
    stdout=subprocess.DEVNULL,
  )
  size = config.image_size
  mask = np.random.default_rng(1).integers(0, 2, (options.batch_size, size, size)).astype(np.uint8)
  np.savez(folder / 'batch.npz', **random_inputs(config, options.batch_size), mask=mask)


def agreement(folder: Path, found: dict[str, list]) -> tuple[float, float]:
  """Returns the relative differences of the logits (largest over largest) and of the first loss."""
  ours, theirs = (np.load(folder / f'{side}.npy') for side in SIDES[:2])
  losses = [found[side][0]['loss'] for side in SIDES[:2]]
  return float(np.abs(ours - theirs).max() / np.abs(theirs).max()), abs(losses[0] / losses[1] - 1)


if __name__ == '__main__':
  main()
