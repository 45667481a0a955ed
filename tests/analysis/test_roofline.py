"""The roofline estimate of operations with known costs."""

import time

import jax
import pytest

from ditsam_jax.analysis.chips import CHIPS
from ditsam_jax.analysis.collectives import Collective
from ditsam_jax.analysis.operations import Operation
from ditsam_jax.analysis.report import Memory, Report, Step, analyse, fully_sharded_bytes, largest
from ditsam_jax.analysis.roofline import roofline
from ditsam_jax.analysis.table import table
from ditsam_jax.analysis.targets import parse_topology

V5E = CHIPS['v5e']
SLICE = parse_topology('v5e:2x2')
# 20 ms of FLOPs, 5 ms of bytes
PRODUCT = Operation(flops=int(197e12 * 0.010), bytes=int(819e9 * 0.002), times=2, overlapped=False, op_name='dot')
SOFTMAX = Operation(flops=0, bytes=int(819e9 * 0.005), times=1, overlapped=False, op_name='exp')


def collective(seconds, overlapped, kind='all-gather', op_name='layers/3/dot'):
  return Collective(kind, 4, 200e9 * seconds, 1, overlapped, op_name, 'bf16[8]')


def test_operations_take_the_longer_of_compute_and_memory():
  time = roofline(V5E, [PRODUCT, SOFTMAX], [])
  assert (time.compute, time.hbm, time.links) == pytest.approx((0.020, 0.005, 0))
  assert time.step == pytest.approx(0.025) and time.parts[0] == ('compute', time.compute)


@pytest.mark.parametrize('seconds, hbm', [(0.010, 0.005), (0.020, 0.009)])  # against 20 ms of FLOPs and 9 ms of bytes
def test_overlapped_copies_cost_only_the_bandwidth_that_is_missing(seconds, hbm):
  copy = Operation(flops=0, bytes=int(819e9 * seconds), times=1, overlapped=True, op_name='')
  assert roofline(V5E, [PRODUCT, SOFTMAX, copy], []).hbm == pytest.approx(hbm)


@pytest.mark.parametrize(
  'found, exposed',
  [
    ([(0.010, True)], 0),
    ([(0.010, False)], 0.010),
    ([(0.040, True)], 0.015),
    ([(0.020, True), (0.010, False)], 0.010),
  ],
)
def test_collectives_cost_only_the_time_that_is_not_hidden(found, exposed):
  time = roofline(V5E, [PRODUCT, SOFTMAX], [collective(*c) for c in found])
  assert time.links == pytest.approx(exposed)


def test_minimum_bytes_of_fully_sharded_training():
  # 1000 weights in bf16 over 4 chips: gathered twice and reduce-scattered once, three quarters of 2000 bytes each time.
  assert fully_sharded_bytes(1000, 0, data=1, fsdp=4) == 3 * 1500
  assert fully_sharded_bytes(0, 1000, data=1, fsdp=4) == 2 * 1500  # frozen weights have no gradient
  assert fully_sharded_bytes(1000, 0, data=4, fsdp=1) == 2 * 1500  # plain data parallelism: one all-reduce
  assert fully_sharded_bytes(1000, 0, data=2, fsdp=4) == 3 * 1500 + 2 * 250


def report(**changes):
  time = roofline(V5E, [PRODUCT, SOFTMAX], [])
  fields = dict(memory=Memory(4 << 30, 0, 8 << 30, 1 << 30), flops=1, bytes=1, collectives=(), time=time)
  return Report(SLICE, Step(32, int(4 * 197e12 * 0.0125), 1000.0), 60.0, **fields | changes)


def test_throughput_and_mfu_follow_from_the_step_time():
  assert report().samples_per_second == pytest.approx(32 / 0.025)
  assert report().mfu == pytest.approx(0.5)


def test_the_table_has_one_column_per_report_and_labels_estimates():
  large = Report(SLICE, Step(32, 1, 1.0), 60.0, too_large='Used 20.5G of 15.75G hbm.')
  lines = table('configs/x.py', {'mesh.fsdp=4': report(), 'mesh.fsdp=1,mesh.data=4': large}).splitlines()
  row = {line[:32].strip(): line for line in lines}
  assert '13.00 of 16 GiB' in row['memory: total'] and row['memory: total'].endswith('does not fit')
  assert 'mesh.fsdp=1,mesh.data=4: does not fit. Used 20.5G of 15.75G hbm.' in lines
  assert row['estimate: samples/s, all chips'].split()[-1] == '1280'  # 32 samples in 25 ms, on four chips
  assert '50 %' in row['estimate: MFU'] and 'compute 80 %, memory 20 %' in row['estimate: bound by']
  assert 'nothing was run' in ' '.join(lines)


def test_running_out_of_memory_is_reported_in_the_compilers_words():
  message = (
    'Ran out of memory on HBM, the total memory required for HLO temporaries (38.58G) exceeds available HBM (15.75G).'
  )

  class TooLarge:
    def compile(self, compiler_options):
      raise jax.errors.JaxRuntimeError(f'RESOURCE_EXHAUSTED: {message}\nmore')

  found = analyse(TooLarge(), SLICE, Step(32, 1, 1.0), time.monotonic)
  assert found.too_large == message and not found.to_json()['fits']


def test_the_largest_collectives_are_summed_over_layers():
  found = tuple(collective(seconds, True, op_name=f'layers/{i}/dot') for i, seconds in enumerate((0.001, 0.002)))
  rows = largest(found + (collective(0.0005, False, 'all-reduce'),))
  assert [(row['kind'], row['times'], row['op_name']) for row in rows] == [
    ('all-gather', 2, 'layers/*/dot'),
    ('all-reduce', 1, 'layers/*/dot'),
  ]
  assert rows[0]['bytes'] == rows[0]['overlapped_bytes'] == pytest.approx(0.003 * 200e9)
