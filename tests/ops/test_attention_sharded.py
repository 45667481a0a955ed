"""Under a mesh every device computes its own batch and heads; the numbers are those of one device."""

import json
import os
from pathlib import Path
import subprocess
import sys


def test_eight_devices_compute_what_one_does():
  environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '--xla_force_host_platform_device_count=8'}
  done = subprocess.run([sys.executable, '-m', 'tests.ops.sharded_attention'], capture_output=True, text=True,
                        cwd=Path(__file__).parents[2], env=environment)
  assert done.returncode == 0, done.stderr
  rows = [json.loads(line) for line in done.stdout.splitlines()]
  assert {row['name'] for row in rows} == {'xla', 'pallas_tpu', 'auto'}
  for row in rows:
    assert row['error'] <= 1e-5, row
    if row['batch'] == 8:  # batch and heads divide by the mesh: nothing of another device is needed
      assert row['gathers'] == 0 and "('data', 'fsdp'), 'tensor'" in row['sharding'], row
