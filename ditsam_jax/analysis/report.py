"""The report of one compiled training step: memory, FLOPs, traffic, and a time estimate."""

import dataclasses
import re
from typing import Any

import jax

from ditsam_jax.analysis.chips import Chip
from ditsam_jax.analysis.collectives import KINDS, Collective, collectives
from ditsam_jax.analysis.hlo import Module
from ditsam_jax.analysis.operations import Operation, heaviest, moved, operations
from ditsam_jax.analysis.roofline import Roofline, roofline
from ditsam_jax.analysis.targets import Target


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes of memory on one chip."""

  arguments: int  # train state and batch, including outputs that alias them
  outputs: int  # that alias no argument
  temporaries: int
  program: int

  @property
  def total(self) -> int:
    """Peak memory: the sum of all parts."""
    return self.arguments + self.outputs + self.temporaries + self.program


@dataclasses.dataclass(frozen=True)
class Step:
  """Properties of a step that do not depend on the compiler."""

  batch_size: int  # over all chips
  model_flops: int  # over all chips
  ideal_sent: float | None  # minimum bytes sent per chip under fully sharded data parallelism; None for other meshes


@dataclasses.dataclass(frozen=True)
class Report:
  """One compiled training step. Counts are per chip, unless they say otherwise.

  If it does not fit, `too_large` says by how much. The compiler of TPUs then gives no program, and the rest is empty.
  """

  target: Target
  step: Step
  compile_seconds: float
  too_large: str = ''
  memory: Memory = Memory(0, 0, 0, 0)
  flops: int = 0
  bytes: int = 0
  collectives: tuple[Collective, ...] = ()
  time: Roofline = Roofline(0.0, 0.0, 0.0)
  endless: tuple[str, ...] = ()
  heaviest: tuple[list[Operation], ...] = ()  # those that move most bytes, by JAX operation and line

  @property
  def chip(self) -> Chip:
    """The chip."""
    return self.target.chip

  @property
  def chips(self) -> int:
    """Number of chips."""
    return self.target.count

  @property
  def sent(self) -> float:
    """Bytes sent per chip and step."""
    return sum(collective.bytes for collective in self.collectives)

  @property
  def sent_between_hosts(self) -> float:
    """Bytes sent to GPUs of other hosts, per GPU and step."""
    return sum(collective.bytes_between_hosts for collective in self.collectives)

  def by_kind(self) -> dict[str, tuple[int, float]]:
    """Collectives executed per step and bytes sent per chip, by kind."""
    return {
      kind: (
        sum(c.times for c in self.collectives if c.kind == kind),
        sum(c.bytes for c in self.collectives if c.kind == kind),
      )
      for kind in KINDS
    }

  @property
  def samples_per_second(self) -> float:
    """Estimated throughput of all chips together."""
    return self.step.batch_size / self.time.step

  @property
  def mfu(self) -> float:
    """Model FLOPs utilisation: model FLOPs divided by peak FLOPs in the estimated time."""
    return self.step.model_flops / self.chips / self.time.step / self.chip.flops

  def to_json(self) -> dict[str, Any]:
    """The report as JSON-serialisable containers.

    Bytes, FLOPs and seconds are per chip and step; `batch_size`, `model_flops` and `samples_per_second` are of all
    chips together.
    """
    out: dict[str, Any] = {
      'topology': self.target.topology,
      'chip': self.chip.name,
      'chips': self.chips,
      'batch_size': self.step.batch_size,
      'model_flops': self.step.model_flops,
      'compile_seconds': round(self.compile_seconds, 1),
      'fits': not self.too_large,
    }
    if self.too_large:
      out |= {'too_large': self.too_large}
    if not self.memory.total:
      return out
    kinds = {kind: {'times': times, 'bytes': round(sent)} for kind, (times, sent) in self.by_kind().items()}
    return out | {
      'hbm': dataclasses.asdict(self.memory)
      | {
        'total': self.memory.total,
        'capacity': self.chip.hbm_bytes,
        'usable': self.chip.usable_bytes,
      },
      'flops': self.flops,
      'bytes_accessed': self.bytes,
      'collectives': kinds,
      'bytes_sent': round(self.sent),
      'bytes_sent_between_hosts': round(self.sent_between_hosts),
      'ideal_bytes_sent': self.step.ideal_sent and round(self.step.ideal_sent),
      'largest_collectives': largest(self.collectives),
      'heaviest_operations': [_summed(group) for group in self.heaviest],
      'loops_of_unknown_length': list(self.endless),
      'estimate': {
        'step_seconds': self.time.step,
        'compute_seconds': self.time.compute,
        'hbm_seconds': self.time.hbm,
        'links_seconds': self.time.links,
        'bound': self.time.parts[0][0],
        'samples_per_second': self.samples_per_second,
        'mfu': self.mfu,
      },
    }


def fully_sharded_bytes(trained: int, frozen: int, *, data: int, fsdp: int) -> float:
  """Minimum bytes a chip sends per step of fully sharded data parallelism, with everything in bf16.

  Over `fsdp` chips, all weights are gathered for the forward and again for the backward pass and gradients are
  reduce-scattered; each sends (fsdp - 1) / fsdp of its bytes. Over `data` such groups, each chip's gradient shard is
  all-reduced.

  Args:
    trained, frozen: numbers of weights.
    data, fsdp: sizes of the mesh axes.
  """
  gathered, reduced = 2 * 2 * (trained + frozen), 2 * trained
  return (gathered + reduced) * (fsdp - 1) / fsdp + 2 * reduced / fsdp * (data - 1) / data


def analyse(lowered: jax.stages.Lowered, target: Target, step: Step, clock) -> Report:
  """Compiles a lowered train step and analyses the result. `clock` returns seconds."""
  started = clock()
  try:
    compiled = lowered.compile(compiler_options=target.options)
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    return Report(target, step, clock() - started, too_large=_out_of_memory(str(error)))
  seconds = clock() - started
  module = Module(compiled.as_text() or '')
  work, sent = operations(module), tuple(collectives(module, target.per_host))
  memory = _memory(compiled)
  return Report(
    target,
    step,
    seconds,
    too_large=_excess(memory.total, target.chip) if target.chip.silicon else '',
    memory=memory,
    collectives=sent,
    flops=sum(o.flops * o.times for o in work),
    bytes=moved(work),
    time=roofline(target.chip, work, sent, target.network_bandwidth),
    endless=tuple(module.endless),
    heaviest=tuple(heaviest(work)),
  )


def _excess(needed: int, chip: Chip) -> str:
  """Why a program does not fit a GPU, whose compiler does not refuse it, or ''."""
  if needed <= chip.usable_bytes:
    return ''
  gib = 2**30
  return f'It needs {needed / gib:.2f} GiB; {chip.usable_bytes / gib:.2f} of {chip.hbm_bytes / gib:.2f} GiB are usable.'


def largest(found: tuple[Collective, ...]) -> list[dict[str, Any]]:
  """The twelve operations that send most, summed over layers: kind, JAX operation, executions, bytes, example."""
  groups: dict[tuple, list[Collective]] = {}
  for collective in found:
    key = collective.kind, collective.chips, re.sub(r'\d+', '*', collective.op_name)
    groups.setdefault(key, []).append(collective)
  rows = [
    {
      'kind': kind,
      'chips': chips,
      'op_name': name,
      'times': sum(c.times for c in group),
      'bytes': round(sum(c.bytes for c in group)),
      'overlapped_bytes': round(sum(c.bytes for c in group if c.overlapped)),
      'example': max(group, key=lambda c: c.sent).shapes,
    }
    for (kind, chips, name), group in groups.items()
  ]
  return sorted(rows, key=lambda row: -row['bytes'])[:12]


def _summed(group: list[Operation]) -> dict[str, Any]:
  """Operations of one JAX operation and line, together."""
  most = max(group, key=lambda operation: operation.bytes)
  return {
    'instruction': most.name,
    'op_name': most.op_name,
    'source': most.source,
    'times': sum(o.times for o in group),
    'bytes': moved(group),
    'flops': sum(o.flops * o.times for o in group),
    'overlapped_bytes': moved(o for o in group if o.overlapped),
    'example': most.result,
  }


def _memory(compiled: jax.stages.Compiled) -> Memory:
  stats = compiled.memory_analysis()
  assert stats is not None  # available on TPU and CPU
  return Memory(
    stats.argument_size_in_bytes,
    stats.output_size_in_bytes - stats.alias_size_in_bytes,
    stats.temp_size_in_bytes,
    stats.generated_code_size_in_bytes,
  )


def _out_of_memory(message: str) -> str:
  """Extracts the part of the compiler's message about memory."""
  found = re.search(r'(?:Ran out of memory|Used [\d.]+\w of)[^\n]*', message)
  return (found.group(0) if found else message.split('\n')[0])[:300]
