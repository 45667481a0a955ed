"""Compiles attention for TPUs and GPUs without having them: python benchmarks/compile_attention.py

Needs libtpu (the extra 'tpu'), or JAX's CUDA plugin ('cuda12', 'cuda13') for GPUs. Prints one JSON line per chip,
shape, implementation and pass: temporary memory, bytes accessed (XLA's count on TPUs; on GPUs, where there is none,
that of compile reports), the size of its largest array per head and query (a quarter of the tokens or more would be
logits), and whether it contains an array [.., N, N]. The compiler also rejects kernels that do not fit a TPU. Exits
with status 1 if a kernel does not compile or contains such an array.

GPUs: python benchmarks/compile_attention.py --chips a100-80 h100 --dtypes bfloat16
"""

import argparse
import json
import math
import os
import re
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
os.environ['JAX_PLATFORMS'] = 'cpu'

import jax

from benchmarks.attention_shapes import SHAPES
from ditsam_jax.analysis.hlo import Module
from ditsam_jax.analysis.operations import moved, operations
from ditsam_jax.analysis.targets import Target, devices_of, lowering, parse_topology
from ditsam_jax.ops.attention import attention
from ditsam_jax.ops.attention.choice import why_not

CHIPS = {'v5e': 'v5e:2x2', 'v5p': 'v5p:2x2x1', 'v6e': 'v6e:2x2'}
CHIPS |= {name: f'{name}:1' for name in ('a100-40', 'a100-80', 'h100', 'b200', 'l4', 't4', 'rtx4090')}
KERNELS = {'tpu': ['pallas_tpu'], 'cuda': ['cudnn', 'pallas_gpu', 'xla']}


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--chips', nargs='+', choices=CHIPS, default=['v5e', 'v5p', 'v6e'])
  parser.add_argument('--shapes', nargs='+', choices=SHAPES, default=list(SHAPES))
  parser.add_argument('--implementations', nargs='+', help="by default, the platform's kernels; on GPUs, 'xla' too")
  parser.add_argument('--dtypes', nargs='+', choices=('bfloat16', 'float32'), default=['bfloat16', 'float32'])
  parser.add_argument('--passes', nargs='+', choices=('forward', 'both'), default=['both'])
  parser.add_argument('--batch', type=int, help="overrides the shape's batch size")
  options = parser.parse_args()
  failed = False
  for chip in options.chips:
    target = parse_topology(CHIPS[chip])
    for shape in options.shapes:
      for dtype in options.dtypes:
        for name in options.implementations or KERNELS[target.platform]:
          for passes in options.passes:
            row = dict(chip=chip, shape=shape, dtype=dtype, implementation=name, passes=passes)
            with lowering(target):
              row |= report(target, name, dtype, passes, *SHAPES[shape], batch=options.batch)
            print(json.dumps(row), flush=True)
            failed |= name in ('auto', 'pallas_tpu', 'pallas_gpu') and row.get('square', 'unsupported' not in row)
  return int(failed)


def report(
  target: Target,
  name: str,
  dtype: str,
  passes: str,
  batch_size: int,
  heads: int,
  width: int,
  side: int,
  prefix: int,
  batch: int | None,
) -> dict:
  """Compiles for one device; returns the figures to print, or `unsupported` or `error` if there are none."""
  tokens, batch = side * side, batch or batch_size
  length = prefix + tokens
  if problem := why_not(name, target.platform, dtype, width, length, 2 * side):
    return dict(batch=batch, unsupported=problem)
  sharding = jax.sharding.SingleDeviceSharding(devices_of(target)[0])
  arrays = [
    jax.ShapeDtypeStruct((batch, heads, *shape), dtype, sharding=sharding)
    for shape in (*((length, width),) * 4, *((tokens, side),) * 2)
  ]

  def forward(*arrays):
    return attention(*arrays, grid=(side, side), prefix=prefix, implementation=name)

  def both(dout, *arrays):
    out, backward = jax.vjp(forward, *arrays)
    return out, backward(dout)

  program, arrays = (both, arrays) if passes == 'both' else (forward, arrays[1:])
  started = time.perf_counter()
  try:
    compiled = jax.jit(program).lower(*arrays).compile(compiler_options=target.options)
  except Exception as error:  # compilers raise any type; the first line says what did not fit
    return dict(batch=batch, error=str(error).split('\n')[0][:300])
  text = compiled.as_text()
  if target.platform == 'cuda':
    traffic = moved(operations(Module(text)))
  else:
    traffic = compiled.cost_analysis()['bytes accessed']
  return dict(
    batch=batch,
    seconds=round(time.perf_counter() - started, 1),
    temporary_mib=round(compiled.memory_analysis().temp_size_in_bytes / 2**20, 1),
    moved_mib=round(traffic / 2**20),
    largest=largest_array(text) // (batch * heads * length),
    square=f',{length},{length}]' in text,
  )


def largest_array(text: str) -> int:
  """Returns the number of elements of the largest array in a compiled program."""
  shapes = set(re.findall(r'\b(?:bf16|f16|f32)\[([\d,]+)\]', text))
  return max(math.prod(map(int, shape.split(','))) for shape in shapes)


if __name__ == '__main__':
  sys.exit(main())
