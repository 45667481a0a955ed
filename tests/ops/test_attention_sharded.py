"""Under a mesh every device computes its own batch and heads; the numbers are those of one device."""

import json

import pytest

from tests.devices import run_on_devices


@pytest.mark.multiprocess
def test_eight_devices_compute_what_one_does():
  printed = run_on_devices('from tests.ops.sharded_attention import main; main()', 8)
  rows = [json.loads(line) for line in printed.splitlines()]
  assert {row['name'] for row in rows} == {'xla', 'pallas_tpu', 'auto'}
  for row in rows:
    assert row['error'] <= 1e-5, row
    if row['batch'] == 8:  # batch and heads divide by the mesh: nothing of another device is needed
      assert row['gathers'] == 0 and "('data', 'fsdp'), 'tensor'" in row['sharding'], row
