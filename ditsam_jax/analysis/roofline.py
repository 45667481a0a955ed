"""A roofline estimate of a program's time from its operations and published peaks. Not a measurement.

Operations run one after another. Each takes the longer of its FLOPs at the chip's bf16 peak and its bytes at memory
bandwidth. Asynchronous copies are free unless all memory traffic together takes longer than the operations; overlapped
collectives are free unless all communication together does. Other collectives block the chip. Products of f32 arrays
count at the chip's peak for them (TF32 on GPUs). A collective among GPUs of several hosts takes as long as the slower
of its two ways: the network, for bytes that leave the host, and the links within hosts, for the others. Vector units,
latencies and the missing torus links of small slices are ignored, so a real step takes longer.
"""

import dataclasses
from collections.abc import Sequence

from ditsam_jax.analysis.chips import Chip
from ditsam_jax.analysis.collectives import Collective
from ditsam_jax.analysis.operations import Operation, moved


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Seconds per step on one chip, by bottleneck; they add up to `step`."""

  compute: float  # compute-bound operations
  hbm: float  # memory-bound operations
  links: float  # collectives that are not hidden behind other work

  @property
  def step(self) -> float:
    """The estimated step time in seconds."""
    return self.compute + self.hbm + self.links

  @property
  def parts(self) -> list[tuple[str, float]]:
    """Seconds by bottleneck, largest first."""
    return sorted((('compute', self.compute), ('memory', self.hbm), ('links', self.links)), key=lambda part: -part[1])


def roofline(
  chip: Chip, operations: list[Operation], collectives: Sequence[Collective], network: float | None = None
) -> Roofline:
  """Estimates the time of a program's operations and collectives on one chip.

  Args:
    chip: its peaks.
    operations, collectives: of the program.
    network: bytes/s between hosts, per chip; None if the links connect all chips.
  """
  compute = hbm = 0.0
  for operation in operations:
    if operation.overlapped:
      continue
    peak = chip.f32_flops if operation.f32 and chip.f32_flops else chip.flops
    by_flops = operation.flops / peak * operation.times
    by_bytes = operation.bytes / chip.hbm_bandwidth * operation.times
    if by_flops >= by_bytes:
      compute += by_flops
    else:
      hbm += by_bytes
  hbm = max(hbm, moved(operations) / chip.hbm_bandwidth - compute)

  def seconds(collective: Collective) -> float:
    crossing = collective.bytes_between_hosts if network else 0.0
    return max((collective.bytes - crossing) / chip.ici_bandwidth, crossing / (network or chip.ici_bandwidth))

  exposed = sum(seconds(c) for c in collectives if not c.overlapped)
  total = sum(map(seconds, collectives))
  return Roofline(compute, hbm, max(exposed, total - compute - hbm))
