"""Converts a full-size random model and compares it with PyTorch: python benchmarks/parity.py --model=vit_b --kind=sam

Prints one JSON line: seconds and peak memory of the conversion (allowed: 1.5 times the file + 1 GB), and for each stage
the largest difference to PyTorch relative to the largest value.
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

import ditsam_jax
from ditsam_jax.convert.torch_peer import Peer, random_inputs, relative_differences, run_ours, run_peer
from ditsam_jax.models.config import PRESETS, DitSamConfig, sam


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--model', choices=('vit_b', 'vit_l', 'vit_h'), default='vit_b')
  parser.add_argument('--kind', choices=('sam', 'dit'), default='sam', help='plain SAM at 1024, or L-DIT at 512')
  options = parser.parse_args()
  config = PRESETS[options.model]()
  config = sam(config) if options.kind == 'sam' else config
  with tempfile.TemporaryDirectory() as folder:
    print(json.dumps({'model': options.model, 'kind': options.kind, **measure(config, Path(folder))}))


def measure(config: DitSamConfig, folder: Path) -> dict:
  """Converts and compares one model; returns the figures to print."""
  file, output = folder / 'model.pth', folder / 'model'
  # In a process of its own: a child's peak memory includes that of its parent.
  with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as process:
    process.submit(write_random, config, file).result()
  flags = ['--fusion=layer_wise'] if config.fusion == 'layer_wise' else []
  script = Path(__file__).resolve().parents[1] / 'convert' / 'torch_to_flax.py'
  started = time.time()
  subprocess.run(
    [sys.executable, script, f'--input={file}', f'--output={output}', *flags], check=True, stdout=subprocess.DEVNULL
  )
  seconds = time.time() - started
  peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
  size = file.stat().st_size
  inputs = random_inputs(config)
  ours = run_ours(ditsam_jax.load(output), inputs)
  peer = Peer(config).eval()
  state = torch.load(file, weights_only=True, mmap=True)
  peer.load_state_dict({name.replace('image_encoder.', 'visual_encoder.'): tensor for name, tensor in state.items()})
  return {
    'file_GB': round(size / 1e9, 3),
    'seconds': round(seconds, 1),
    'peak_GB': round(peak / 1e9, 2),
    'allowed_GB': round(1.5 * size / 1e9 + 1, 2),
    'differences': {
      name: float(f'{value:.1e}') for name, value in relative_differences(ours, run_peer(peer, inputs)).items()
    },
  }


def write_random(config: DitSamConfig, file: Path) -> None:
  """Writes a random model, a plain SAM with Meta's names."""
  tensors = random_peer(config).state_dict()
  if config.text_encoder is None:
    tensors = {name.replace('visual_encoder.', 'image_encoder.'): tensor for name, tensor in tensors.items()}
  torch.save(tensors, file)


def random_peer(config: DitSamConfig) -> Peer:
  """Returns a PyTorch model, initialised by PyTorch, with noise in the position embeddings, which start at zero."""
  torch.manual_seed(0)
  peer = Peer(config).eval()
  with torch.no_grad():
    for name, parameter in peer.named_parameters():
      if 'rel_pos' in name or 'pos_embed' in name:
        parameter.normal_(std=0.02)
  return peer


if __name__ == '__main__':
  main()
