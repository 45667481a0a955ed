"""Checks our GPU kernel's numbers at every preset's shape: JAX_PLATFORMS=cpu python benchmarks/attention_numbers.py

Interprets the kernel on the CPU, forward and backward, for one image and one head (programs of other heads and images
do the same), and compares output and gradients with the definition in float64. Prints one JSON line per shape and type
with the largest error of each array, relative to the array's largest value. Exits with status 1 if one exceeds the
bound of the test suite. Takes about 10 seconds per line on an idle CPU.
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from benchmarks.attention_shapes import SHAPES
from tests.ops.attention_cases import Case, exactly, value_and_gradients
from tests.ops.test_attention import TOLERANCE

NAMES = 'out', 'dq', 'dk', 'dv', 'dtable_h', 'dtable_w'


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--shapes', nargs='+', choices=SHAPES, default=list(SHAPES))
  parser.add_argument('--dtypes', nargs='+', choices=TOLERANCE, default=['float32', 'bfloat16'])
  parser.add_argument('--implementation', choices=('pallas_gpu', 'pallas_tpu', 'xla'), default='pallas_gpu')
  options = parser.parse_args()
  failed = False
  for shape in options.shapes:
    _, _, width, side, prefix = SHAPES[shape]
    case = Case((side, side), prefix, width, heads=1)
    for dtype in options.dtypes:
      started = time.perf_counter()
      arrays, probe = case.arrays(dtype)
      found = value_and_gradients(options.implementation, case, arrays, probe)
      errors = {
        name: float(f'{np.abs(ours - exact).max() / np.abs(exact).max():.1e}')
        for name, ours, exact in zip(NAMES, found, exactly(case, arrays, probe))
      }
      failed |= not max(errors.values()) <= TOLERANCE[dtype]
      seconds = round(time.perf_counter() - started, 1)
      print(json.dumps({'shape': shape, 'dtype': dtype, **errors, 'seconds': seconds}), flush=True)
  return int(failed)


if __name__ == '__main__':
  sys.exit(main())
