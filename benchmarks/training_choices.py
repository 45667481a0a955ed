"""Measures the time and memory of each training option: python benchmarks/training_choices.py --batch-size=2

Trains L-DIT with random weights on random batches, on the available device; each choice runs in a separate process and
changes only what its name says. Prints one JSON line per choice: seconds of a step, of a forward pass (medians; minimum
and maximum as `spread`) and of compilation, sizes of the train state (weights, average, moments) and of the step's
temporaries according to XLA, and the process's peak memory.

Windows and image sizes: python benchmarks/training_choices.py --batch-size=1 --image-size=1024 --choices plain windowed
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measuring import jitted_forward, peak_of_process, timed
from ditsam_jax.config import lengths
from ditsam_jax.config.recipes import as_config_dict, recipe
from ditsam_jax.models.config import PRESETS
from ditsam_jax.models.weights import cast
from ditsam_jax.parallel import sharding
from ditsam_jax.training.program import build

PLAIN = {'scan': False, 'remat': 'none', 'accumulate': 1, 'dtype': 'float32', 'freeze': ''}
CHOICES = {  # config fields that differ from PLAIN
  'plain': {},
  'remat_elementwise': {'remat': 'elementwise'},
  'remat_block': {'remat': 'block'},
  'accumulate_2': {'accumulate': 2},
  'scan': {'scan': True},
  'scan_remat_elementwise': {'scan': True, 'remat': 'elementwise'},
  'bfloat16': {'dtype': 'bfloat16'},
  'freeze_text_encoder': {'freeze': 'text_encoder'},
  'freeze_image_encoder': {'freeze': 'image_encoder'},
  'freeze_both': {'freeze': 'image_encoder,text_encoder'},
  'windowed': {'model.image_encoder.attention_scope': 'windowed'},
}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--model', choices=PRESETS, default='vit_b')
  parser.add_argument('--batch-size', type=int, default=2)
  parser.add_argument('--steps', type=int, default=3)
  parser.add_argument('--image-size', type=int, default=512)
  parser.add_argument('--choices', nargs='+', choices=CHOICES, default=list(CHOICES))
  parser.add_argument('--choice', choices=CHOICES, help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.choice:
    print(json.dumps(measure(options)))
    return
  for choice in options.choices:
    if choice == 'accumulate_2' and options.batch_size % 2:
      print('skipping accumulate_2: it needs an even --batch-size', file=sys.stderr)
      continue
    subprocess.run([sys.executable, __file__, *sys.argv[1:], f'--choice={choice}'], check=True)


def measure(options: argparse.Namespace) -> dict:
  """Measures one choice; returns the figures to print."""
  config = recipe('refcoco')
  config.model = as_config_dict(PRESETS[options.model](image_size=options.image_size))
  config.data.batch_size = options.batch_size
  config.update_from_flattened_dict(PLAIN | CHOICES[options.choice])
  config = lengths.resolve(config, lambda: lengths.samples_without_data(config))
  program = build(config, config.model, sharding.make_mesh(config.mesh))
  started = time.perf_counter()
  compiled = program.lower().compile()
  compiling = time.perf_counter() - started
  state, _ = program.initial_state()
  rng = np.random.default_rng(0)
  batch = program.assemble(
    {name: rng.integers(0, 2, array.shape).astype(array.dtype) for name, array in program.batch.items()}
  )

  def step():
    nonlocal state
    state, metrics = compiled(state, batch)
    assert np.isfinite(float(metrics['loss']))

  steps = timed(step, options.steps)
  peak = peak_of_process()
  memory = compiled.memory_analysis()
  model = program.averaged_model(state)
  state = None
  cast(model, jnp.dtype(config.dtype))
  forward = jitted_forward(model)
  inputs = [batch[name] for name in ('image', 'token_ids', 'token_mask')]
  forwards = timed(lambda: forward(*inputs).block_until_ready(), options.steps)
  return {
    'choice': options.choice,
    'model': options.model,
    'image_size': options.image_size,
    'batch_size': options.batch_size,
    'device': jax.devices()[0].device_kind,
    'step_seconds': round(statistics.median(steps), 2),
    'step_spread': _spread(steps),
    'forward_seconds': round(statistics.median(forwards), 2),
    'forward_spread': _spread(forwards),
    'compile_seconds': round(compiling, 1),
    'state_gb': round(memory.argument_size_in_bytes / 1e9, 2),
    'temporaries_gb': round(memory.temp_size_in_bytes / 1e9, 2),
    'peak_process_gb': peak,
  }


def _spread(seconds: list[float]) -> list[float]:
  return [round(min(seconds), 2), round(max(seconds), 2)]


if __name__ == '__main__':
  main()
