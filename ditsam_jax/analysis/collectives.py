"""The collectives in a program's optimised HLO, and the bytes they send.

A collective is counted once per execution. A start/done pair is one collective, and loop bodies are multiplied by their
trip counts. XLA repeats the parts of a TPU's asynchronous collective in several fusions; it is counted at its start.
The TPU compiler emits some reduce-scatters as fusions of an all-reduce and a slice; they count as reduce-scatters.

Bytes sent per chip assume bandwidth-optimal ring algorithms: (n - 1) / n of the full array for all-gather,
reduce-scatter and all-to-all over n chips, twice that for all-reduce, and the full array for collective-permute.
Where a group spans hosts, rings pass through all its chips of a host before they leave it, so g of them share what
crosses the network; in an all-to-all each chip sends its pieces for other hosts, and a permuted array may all go there.
"""

import dataclasses
import re

import numpy as np

from ditsam_jax.analysis.hlo import ASYNC_START, Computation, Instruction, Module
from ditsam_jax.analysis.replica_groups import groups

KINDS = ('all-gather', 'reduce-scatter', 'all-reduce', 'all-to-all', 'collective-permute')
_LAYOUT_OPS = ('bitcast', 'reshape', 'copy', 'transpose', 'convert')


@dataclasses.dataclass(frozen=True)
class Collective:
  """A collective and the bytes each chip sends for it."""

  kind: str  # one of KINDS
  chips: int  # in the largest replica group
  sent: float  # bytes sent per chip and execution
  times: int  # executions per call of the program
  overlapped: bool  # runs concurrently with other work
  op_name: str  # the JAX operation it comes from
  shapes: str  # of its operands, for display
  crossing: float = 0.0  # bytes of `sent` that go to other hosts

  @property
  def bytes(self) -> float:
    """Bytes sent per chip in one call of the program."""
    return self.sent * self.times

  @property
  def bytes_between_hosts(self) -> float:
    """Those that go to other hosts."""
    return self.crossing * self.times


def collectives(module: Module, per_host: int | None = None) -> list[Collective]:
  """Returns all collectives of the program.

  Args:
    module: the program.
    per_host: devices of each host, which have consecutive numbers; None if links connect all chips alike.
  """
  started = {
    _channel(i)
    for computation in module.computations.values()
    if computation.calls(ASYNC_START)
    for i in computation.instructions.values()
    if _kind(i)
  } - {None}
  found = []
  for name, times in module.executions.items():
    for instruction in module.computations[name].instructions.values():
      found += _of(module, module.computations[name], instruction, times, started, per_host)
  return found


def _of(
  module: Module,
  computation: Computation,
  instruction: Instruction,
  times: int,
  started: set[str | None],
  per_host: int | None,
) -> list[Collective]:
  """Returns the collectives of one scheduled instruction."""
  if kind := _kind(instruction):
    synchronous = '"is_sync":true' in instruction.attributes  # GPUs: a pair that waits at once
    overlapped = not synchronous and instruction.opcode.endswith('-start')
    return [_collective(module, computation, instruction, kind, times, overlapped, per_host)]
  inner = module.computations.get(instruction.called('calls')) if instruction.opcode == 'fusion' else None
  if inner is None:
    return []
  is_start = inner.calls(ASYNC_START)
  found = []
  for i in inner.instructions.values():
    if i.opcode == 'fusion':
      found += _of(module, inner, i, times, started, per_host)
    elif (kind := _kind(i)) and (is_start or _channel(i) not in started) and not inner.calls('AsyncCollectiveDone'):
      if kind == 'all-reduce' and _is_sliced(inner, i):
        kind = 'reduce-scatter'
      found.append(_collective(module, inner, i, kind, times, is_start, per_host, instruction))
  return found


def _collective(
  module: Module,
  computation: Computation,
  instruction: Instruction,
  kind: str,
  times: int,
  overlapped: bool,
  per_host: int | None,
  fusion: Instruction | None = None,
) -> Collective:
  operands = [shape for name in instruction.operands for shape in computation.instructions[name].shapes]
  size = sum(shape.bytes for shape in operands)
  members = groups(instruction.attributes, module.partitions)
  chips = module.partitions if kind == 'collective-permute' else members.shape[1]
  share = (chips - 1) / chips
  sent = {
    'all-gather': size * (chips - 1),
    'reduce-scatter': size * share,
    'all-reduce': 2 * size * share,
    'all-to-all': size * share,
    'collective-permute': size,
  }[kind]
  op_name = instruction.op_name or (fusion.op_name if fusion else '')
  return Collective(
    kind,
    chips,
    sent,
    times,
    overlapped,
    op_name,
    ' '.join(f'{shape.dtype}[{",".join(map(str, shape.dims))}]' for shape in operands),
    sent * _crossing(kind, members // per_host) if per_host else 0.0,
  )


def _crossing(kind: str, hosts: np.ndarray) -> float:
  """The part of the bytes sent that goes to other hosts, from the host of each chip, int [groups, chips]."""
  parts = [0.0]
  for group in hosts:
    count = np.unique(group, return_counts=True)[1]
    if len(count) > 1:
      least = int(count.min())  # chips on one host, which limit its share of the network
      parts.append(
        {'collective-permute': 1.0, 'all-to-all': (len(group) - least) / (len(group) - 1)}.get(kind, 1 / least)
      )
  return max(parts)


def _kind(instruction: Instruction) -> str | None:
  """The kind of collective an instruction starts, or None."""
  name = instruction.opcode.removesuffix('-start')
  return name if name in KINDS else None


def _channel(instruction: Instruction) -> str | None:
  found = re.search(r'channel_id=(\d+)', instruction.attributes)
  return found.group(1) if found else None


def _is_sliced(computation: Computation, all_reduce: Instruction) -> bool:
  """Whether all users of an all-reduce only slice its result, which makes it a reduce-scatter."""
  users = computation.users.get(all_reduce.name, [])
  return bool(users) and all(
    user.opcode == 'dynamic-slice' or user.opcode in _LAYOUT_OPS and _is_sliced(computation, user) for user in users
  )
