"""Under a mesh, each device computes its own batch and heads; results equal those of one device."""

import json

import pytest

from tests.devices import run_on_devices


@pytest.mark.multiprocess
def test_eight_devices_compute_the_same_as_one():
  printed = run_on_devices('from tests.ops.sharded_attention import main; main()', 8)
  rows = [json.loads(line) for line in printed.splitlines()]
  assert {row['name'] for row in rows} == {'xla', 'pallas_tpu', 'auto'}
  for row in rows:
    assert row['error'] <= 1e-5, row
    if row['batch'] == 8:  # the mesh divides batch and heads, so nothing is gathered
      assert row['gathers'] == 0 and "('data', 'fsdp'), 'tensor'" in row['sharding'], row
