"""The collectives in a program's optimised HLO, and the bytes they send.

A collective is counted once per execution. A start/done pair is one collective, and loop bodies are multiplied by their
trip counts. XLA repeats the parts of a TPU's asynchronous collective in several fusions; it is counted at its start.
The TPU compiler emits some reduce-scatters as fusions of an all-reduce and a slice; they count as reduce-scatters.

Bytes sent per chip assume bandwidth-optimal ring algorithms: (n - 1) / n of the full array for all-gather,
reduce-scatter and all-to-all over n chips, twice that for all-reduce, and the full array for collective-permute.
"""

import dataclasses
import re

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
  between_hosts: bool = False  # a group has chips of several hosts

  @property
  def bytes(self) -> float:
    """Bytes sent per chip in one call of the program."""
    return self.sent * self.times


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
  hosts = members // per_host if per_host else members * 0
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
    bool((hosts != hosts[:, :1]).any()),
  )


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
