"""What each way of training costs: python benchmarks/training_choices.py --batch-size=4

L-DIT with random weights on random batches, on whatever device is there; every choice in a process of its own. Prints
one JSON line a choice: seconds a step (median of the steps; lowest and highest as `spread`) and to compile, bytes of the
train state (weights, average, moments, gradients' share) and of the step's temporaries by XLA's account, and the most
memory that the process ever had.
"""

import argparse
import json
from pathlib import Path
import resource
import statistics
import subprocess
import sys
import time

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import jax
import numpy as np

from ditsam_jax.models.config import PRESETS
from ditsam_jax.training import sharding
from ditsam_jax.training.config import as_config_dict, recipe
from ditsam_jax.training.program import build

CHOICES = {
    'plain': {},
    "remat='attention'": {'remat': 'attention'},
    "remat='block'": {'remat': 'block'},
    'accumulate=2': {'accumulate': 2},
    'scan': {'scan': True},
    "dtype='bfloat16'": {'dtype': 'bfloat16'},
    "freeze='text_encoder'": {'freeze': 'text_encoder'},
    "freeze='image_encoder'": {'freeze': 'image_encoder'},
    "freeze='image_encoder,text_encoder'": {'freeze': 'image_encoder,text_encoder'},
}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--model', choices=PRESETS, default='vit_b')
  parser.add_argument('--batch-size', type=int, default=2)
  parser.add_argument('--steps', type=int, default=3)
  parser.add_argument('--choice', choices=CHOICES, help='this one alone; default: all, one after the other')
  options = parser.parse_args()
  if options.choice:
    print(json.dumps(measure(options)))
    return
  for choice in CHOICES:
    if choice == 'accumulate=2' and options.batch_size % 2:
      continue
    subprocess.run([sys.executable, __file__, *sys.argv[1:], f'--choice={choice}'], check=True)


def measure(options: argparse.Namespace) -> dict:
  """Everything that is printed of a choice."""
  config = recipe('refcoco')
  config.model = as_config_dict(PRESETS[options.model]())
  config.data.batch_size = options.batch_size
  config.update(CHOICES[options.choice])
  program = build(config, PRESETS[options.model](), sharding.make_mesh(config.mesh))
  started = time.perf_counter()
  compiled = program.lower().compile()
  compiling = time.perf_counter() - started
  state, _ = program.initial_state()
  rng = np.random.default_rng(0)
  batch = program.assemble({name: rng.integers(0, 2, array.shape).astype(array.dtype)
                            for name, array in program.batch.items()})
  seconds = []
  for _ in range(options.steps + 1):
    started = time.perf_counter()
    state, metrics = compiled(state, batch)
    loss = float(metrics['loss'])
    seconds.append(time.perf_counter() - started)
  assert np.isfinite(loss)
  steps = seconds[1:]  # the first one pays for pages that are touched for the first time
  memory = compiled.memory_analysis()
  return {'choice': options.choice, 'model': options.model, 'batch_size': options.batch_size,
          'device': jax.devices()[0].device_kind, 'seconds': round(statistics.median(steps), 2),
          'spread': [round(min(steps), 2), round(max(steps), 2)], 'compile_seconds': round(compiling, 1),
          'state_gb': round(memory.argument_size_in_bytes / 1e9, 2),
          'temporaries_gb': round(memory.temp_size_in_bytes / 1e9, 2),
          'peak_process_gb': round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)}


if __name__ == '__main__':
  main()
