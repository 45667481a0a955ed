"""Compiles attention for TPUs without a TPU: python benchmarks/compile_attention.py

Needs libtpu (pip install libtpu). Prints one JSON line per chip, shape and implementation for a program with forward
and backward pass: temporary memory, bytes accessed, the size of its largest array per head and query (a quarter of the
tokens or more would be logits), and whether it contains an array [.., N, N]. The compiler also rejects kernels that do
not fit the chip. Exits with status 1 if a kernel does not compile or contains such an array.
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
from ditsam_jax.analysis.chips import topology_devices
from ditsam_jax.ops.attention import attention

CHIPS = {'v5e': 'v5e:2x2', 'v5p': 'v5p:2x2x1', 'v6e': 'v6e:2x2'}


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--chips', nargs='+', choices=CHIPS, default=list(CHIPS))
  parser.add_argument('--shapes', nargs='+', choices=SHAPES, default=list(SHAPES))
  parser.add_argument('--implementations', nargs='+', default=['pallas_tpu'])
  parser.add_argument('--dtypes', nargs='+', choices=('bfloat16', 'float32'), default=['bfloat16', 'float32'])
  parser.add_argument('--batch', type=int, help="overrides the shape's batch size")
  options = parser.parse_args()
  failed = False
  for chip in options.chips:
    device = topology_devices(CHIPS[chip])[0]
    for shape in options.shapes:
      for dtype in options.dtypes:
        for name in options.implementations:
          row = dict(chip=chip, shape=shape, dtype=dtype, implementation=name)
          row |= report(device, name, dtype, *SHAPES[shape], batch=options.batch)
          print(json.dumps(row), flush=True)
          failed |= name in ('auto', 'pallas_tpu') and row.get('square', True)
  return int(failed)


def report(
  device, name: str, dtype: str, batch_size: int, heads: int, width: int, side: int, prefix: int, batch: int | None
) -> dict:
  """Compiles forward and backward pass for one device; returns the figures to print, or `error` if that fails."""
  tokens, batch = side * side, batch or batch_size
  length = prefix + tokens
  sharding = jax.sharding.SingleDeviceSharding(device)
  arrays = [
    jax.ShapeDtypeStruct((batch, heads, *shape), dtype, sharding=sharding)
    for shape in (*((length, width),) * 4, *((tokens, side),) * 2)
  ]

  def gradients(dout, *arrays):
    out, backward = jax.vjp(lambda *a: attention(*a, grid=(side, side), prefix=prefix, implementation=name), *arrays)
    return out, backward(dout)

  started = time.perf_counter()
  try:
    compiled = jax.jit(gradients).lower(*arrays).compile()
  except Exception as error:  # compilers raise any type; the first line says what did not fit
    return dict(batch=batch, error=str(error).split('\n')[0][:300])
  text = compiled.as_text()
  return dict(
    batch=batch,
    seconds=round(time.perf_counter() - started, 1),
    temporary_mib=round(compiled.memory_analysis().temp_size_in_bytes / 2**20, 1),
    moved_mib=round(compiled.cost_analysis()['bytes accessed'] / 2**20),
    largest=largest_array(text) // (batch * heads * length),
    square=f',{length},{length}]' in text,
  )


def largest_array(text: str) -> int:
  """Returns the number of elements of the largest array in a compiled program."""
  shapes = set(re.findall(r'\b(?:bf16|f16|f32)\[([\d,]+)\]', text))
  return max(math.prod(map(int, shape.split(','))) for shape in shapes)


if __name__ == '__main__':
  sys.exit(main())
