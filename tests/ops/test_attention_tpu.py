"""The TPU kernels under the real TPU compiler, and under an interpreter that simulates memory and cores."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from ditsam_jax.ops.attention import pallas_tpu
from tests.ops.attention_cases import Case, exactly, value_and_gradients

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='needs libtpu: pip install libtpu')
def test_forward_and_backward_compile_without_an_n_by_n_array():
  done = subprocess.run(
    [
      sys.executable,
      ROOT / 'benchmarks' / 'compile_attention.py',
      '--shapes',
      'vit_b-512',
      '--dtypes',
      'bfloat16',
      '--implementations',
      'auto',
    ],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  rows = [json.loads(line) for line in done.stdout.splitlines()]
  assert [row['chip'] for row in rows] == ['v5e', 'v5p', 'v6e']
  for row in rows:
    assert not row['square'] and row['largest'] <= 128, row  # numbers per token and head; an [N, N] array has 1044


@pytest.mark.slow
@pytest.mark.verifies(
  "The TPU's kernels on two simulated cores in random order",
  against='the definition in float64',
  within='2e-5 relative, no race',
)
def test_no_data_races_between_two_cores(monkeypatch, capfd):
  """The interpreter runs parallel axes on two cores in random order and fills uninitialised memory with NaN."""
  monkeypatch.setitem(pallas_tpu.LARGEST_BLOCK, 'float32', 128)  # three blocks of queries and of keys
  case = Case((16, 17), prefix=3, batch=2)
  arrays, probe = case.arrays()
  pltpu.reset_tpu_interpret_mode_state()
  race_detector = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2, random_seed=1)
  found = value_and_gradients('pallas_tpu', case, arrays, probe, interpret=race_detector)
  for ours, exact in zip(found, exactly(case, arrays, probe)):
    np.testing.assert_allclose(ours, exact, atol=2e-5 * np.abs(exact).max())
  assert 'RACE' not in capfd.readouterr().out
