"""A roofline estimate of a program's time from its operations and published peaks. Not a measurement.

Operations run one after another. Each takes the longer of its FLOPs at the chip's bf16 peak and its bytes at HBM
bandwidth. Asynchronous copies are free unless all memory traffic together takes longer than the operations; overlapped
collectives are free unless all communication together does. Other collectives block the chip. Vector units, latencies and
the missing torus links of small slices are ignored, so a real step takes longer.
"""

import dataclasses
from collections.abc import Sequence

from ditsam_jax.analysis.chips import Chip
from ditsam_jax.analysis.collectives import Collective
from ditsam_jax.analysis.operations import Operation


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Seconds per step on one chip, by bottleneck; they add up to `step`."""

  compute: float  # compute-bound operations
  hbm: float  # memory-bound operations
  ici: float  # collectives that are not hidden behind other work

  @property
  def step(self) -> float:
    """The estimated step time in seconds."""
    return self.compute + self.hbm + self.ici

  @property
  def parts(self) -> list[tuple[str, float]]:
    """Seconds by bottleneck, largest first."""
    return sorted((('compute', self.compute), ('HBM', self.hbm), ('ICI', self.ici)), key=lambda part: -part[1])


def roofline(chip: Chip, operations: list[Operation], collectives: Sequence[Collective]) -> Roofline:
  """Estimates the time of a program's operations and collectives on one chip."""
  compute = hbm = 0.0
  moved = sum(operation.bytes * operation.times for operation in operations) / chip.hbm_bandwidth
  for operation in operations:
    if operation.overlapped:
      continue
    by_flops = operation.flops / chip.flops * operation.times
    by_bytes = operation.bytes / chip.hbm_bandwidth * operation.times
    if by_flops >= by_bytes:
      compute += by_flops
    else:
      hbm += by_bytes
  hbm = max(hbm, moved - compute)
  exposed = sum(c.bytes for c in collectives if not c.overlapped) / chip.ici_bandwidth
  total = sum(c.bytes for c in collectives) / chip.ici_bandwidth
  return Roofline(compute, hbm, max(exposed, total - compute - hbm))
