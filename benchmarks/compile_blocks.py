"""Compiles the image encoder's blocks, forward and backward, without the device: python benchmarks/compile_blocks.py

One device, bf16, blocks scanned: what a training step spends most on, in a fraction of its compile time. Prints one
JSON line per chip and `remat`: temporary memory, bytes moved, FLOPs, and the estimate of compile reports. Model FLOPs
are three times those of the blocks' products.

  python benchmarks/compile_blocks.py --config ldit --chips v5e v6e h100 --remat elementwise none --images 8
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])
os.environ['JAX_PLATFORMS'] = 'cpu'

import jax
import jax.numpy as jnp

from ditsam_jax.analysis import targets
from ditsam_jax.analysis.hlo import Module
from ditsam_jax.analysis.operations import heaviest, moved, operations
from ditsam_jax.analysis.roofline import roofline
from ditsam_jax.config import checks, files
from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.models.ditsam import abstract_model
from ditsam_jax.models.execution import REMAT, Execution
from ditsam_jax.models.image_encoder import BLOCKS
from ditsam_jax.models.layers import attention_flops, linear_flops
from ditsam_jax.models.weights import Structure, weights_of
from ditsam_jax.training.program import attention_for

CHIPS = {'v5e': 'v5e:2x2', 'v5p': 'v5p:2x2x1', 'v6e': 'v6e:2x2'}


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
  parser.add_argument('--config', default='ldit')
  parser.add_argument('--chips', nargs='+', default=['v5e'])
  parser.add_argument('--remat', nargs='+', choices=REMAT, default=['elementwise'])
  parser.add_argument('--images', type=int, default=8)
  parser.add_argument('--operations', type=int, default=0, help='also print this many operations that move most bytes')
  options = parser.parse_args()
  model = checks.check(files.load(options.config, [])).model
  for chip in options.chips:
    target = targets.parse_topology(CHIPS.get(chip, f'{chip}:1'))
    for remat in options.remat:
      with targets.lowering(target):
        row, groups = report(model, target, remat, options.images)
      print(
        json.dumps({'config': options.config, 'chip': chip, 'remat': remat, 'images': options.images} | row), flush=True
      )
      for group in groups[: options.operations]:
        print(
          f'  {moved(group) / 1e9:.2f} GB {group[0].result} {group[0].op_name.rpartition("/")[2]} {group[0].source}'
        )


def report(model: DitSamConfig, target: targets.Target, remat: str, images: int) -> tuple[dict[str, Any], list]:
  """Compiles for one device; returns the figures, and the operations that move most."""
  device = targets.devices_of(target, targets.AMPLE)[0]
  place = jax.sharding.SingleDeviceSharding(device)
  abstract = abstract_model(model)
  structure = Structure(abstract)
  encoder, grid = model.image_encoder, (model.grid, model.grid)

  def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place)

  weights = {name: array(*value.shape) for name, value in weights_of(abstract).items()}
  blocks = {name: weights.pop(name) for name in list(weights) if name.startswith(f'{BLOCKS}.')}
  tokens = array(images, model.grid**2, encoder.width)
  slots = array(encoder.depth, images, model.max_text_tokens, encoder.width)
  attention = attention_for('auto', model, device.platform, jnp.dtype('bfloat16'))
  execution = Execution(remat, True, attention, tiled=device.platform == 'tpu')

  def loss(blocks, tokens, slots, probe, rest):
    out = structure.module(blocks | rest).image_encoder.scan_blocks(tokens, grid, slots, execution)
    return (out * probe).astype(jnp.float32).sum()

  lowered = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(blocks, tokens, slots, tokens, weights)
  began = time.monotonic()
  compiled = lowered.compile(compiler_options=target.options)
  work, stats = operations(Module(compiled.as_text() or '')), compiled.memory_analysis()
  assert stats is not None  # available for all of these compilers
  estimate = roofline(target.chip, work, [])
  length, width = model.grid**2 + model.max_text_tokens, encoder.width
  forward = linear_flops(length, width, 3 * width) + linear_flops(length, width, width)
  forward += linear_flops(length, width, encoder.mlp_ratio * width, width) + attention_flops(length, length, width)
  needed = 3 * encoder.depth * images * forward
  return {
    'attention': attention,
    'seconds': round(time.monotonic() - began),
    'temporary_gib': round(stats.temp_size_in_bytes / 2**30, 2),
    'moved_gb': round(moved(work) / 1e9, 1),
    'tflops': round(sum(o.flops * o.times for o in work) / 1e12, 2),
    'estimate': {part: round(1e3 * seconds, 1) for part, seconds in dataclasses.asdict(estimate).items() if seconds},
    'mfu': round(needed / target.chip.flops / estimate.step, 3),
  }, heaviest(work)


if __name__ == '__main__':
  main()
