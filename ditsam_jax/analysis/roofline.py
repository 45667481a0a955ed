"""A roofline estimate of a program's time from its operations and published peaks. Not a measurement.

Operations run one after the other, each as long as its FLOPs at the chip's bf16 peak or its bytes at the bandwidth of
its HBM take, whichever is more. Copies that the compiler runs beside other work cost nothing unless all bytes together
take longer than that, and collectives beside other work nothing unless all of them do; other collectives make the chip
wait. Vector units, latencies and the pieces of a slice's torus that are missing are not looked at: a real step takes
longer.
"""

import dataclasses
from collections.abc import Sequence

from ditsam_jax.analysis.chips import Chip
from ditsam_jax.analysis.collectives import Collective
from ditsam_jax.analysis.operations import Operation


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Seconds per step on one chip by bottleneck; they add up to `step`."""

  compute: float  # operations whose FLOPs take longer
  hbm: float  # operations whose bytes take longer
  ici: float  # collectives that nothing hides

  @property
  def step(self) -> float:
    """The estimated step time in seconds."""
    return self.compute + self.hbm + self.ici

  @property
  def parts(self) -> list[tuple[str, float]]:
    """Seconds by bottleneck, largest first."""
    return sorted((('compute', self.compute), ('HBM', self.hbm), ('ICI', self.ici)), key=lambda part: -part[1])


def roofline(chip: Chip, operations: list[Operation], collectives: Sequence[Collective]) -> Roofline:
  """The estimate for a program's operations and collectives on one chip."""
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
  waiting = sum(c.bytes for c in collectives if not c.overlapped) / chip.ici_bandwidth
  all_of_them = sum(c.bytes for c in collectives) / chip.ici_bandwidth
  return Roofline(compute, hbm, max(waiting, all_of_them - compute - hbm))
