"""TPU chips and slices: published peaks, and topologies for the compiler.

Source: the Cloud TPU documentation, pages "TPU v5e", "TPU v5p" and "TPU v6e" (cloud.google.com/tpu/docs/v5e, v5p, v6e).
Their tables of key specifications give the peak compute per chip (bf16), HBM capacity and bandwidth per chip, and
bidirectional inter-chip interconnect (ICI) bandwidth per chip; rates use 1 GB = 1e9 bytes. The same pages list the slices.
"""

import dataclasses
import importlib.util
import math
import os
from typing import Any

from ditsam_jax.errors import UserError

_SQUARE = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')

# Makes libtpu work without a TPU: no query to the metadata server, no lock, no warnings.
_NO_TPU = {
  'TPU_SKIP_MDS_QUERY': '1',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
  'TF_CPP_MIN_LOG_LEVEL': '2',
}


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published peaks of one chip."""

  name: str
  flops: float  # bf16 FLOP/s
  hbm_bytes: int
  hbm_bandwidth: float  # bytes/s
  ici_bandwidth: float  # bytes/s sent over all links: half of the published bidirectional bandwidth
  slices: tuple[str, ...]  # topologies on offer


CHIPS = {
  chip.name: chip
  for chip in (
    Chip('v5e', 197e12, 16 << 30, 819e9, 200e9, _SQUARE),
    Chip(
      'v5p',
      459e12,
      95 << 30,
      2765e9,
      600e9,
      ('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8', '8x8x8', '8x8x16', '8x16x16'),
    ),
    Chip('v6e', 918e12, 32 << 30, 1638e9, 400e9, _SQUARE),
  )
}


def parse_topology(topology: str) -> tuple[Chip, int]:
  """Parses 'v5e:4x4' into a chip and the number of chips. Raises UserError, listing known topologies."""
  name, _, slice_ = topology.partition(':')
  chip = CHIPS.get(name)
  if chip is None:
    known = ', '.join(f'{chip.name}:{chip.slices[3]}' for chip in CHIPS.values())
    raise UserError(
      f'topology {topology!r} is unknown; expected CHIP:SLICE with a chip of {", ".join(CHIPS)}, such as {known}'
    )
  if slice_ not in chip.slices:
    raise UserError(f'topology {topology!r} is unknown; slices of {name} are {", ".join(chip.slices)}')
  return chip, math.prod(map(int, slice_.split('x')))


def topology_devices(topology: str) -> list[Any]:
  """Returns the devices of a slice to compile for; needs no TPU. Raises UserError if libtpu is not installed."""
  parse_topology(topology)
  if importlib.util.find_spec('libtpu') is None:
    raise UserError("the TPU compiler (libtpu) is not installed; run: pip install -e '.[tpu]'")
  for name, value in _NO_TPU.items():
    os.environ.setdefault(name, value)
  from jax.experimental import topologies

  bounds = {'chips_per_host_bounds': (1, 1, 1)} if topology.endswith(':1x1') else {}
  return list(topologies.get_topology_desc(topology, platform='tpu', **bounds).devices)
