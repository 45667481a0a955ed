"""Checks whether a training step fits into device memory and, if not, which changes would make it fit.

Sizes are those of the compiled step: arguments, results, temporaries and code on one device. Evaluation, the data
pipeline and Python need additional memory.
"""

import contextlib
import ctypes
import dataclasses
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from ditsam_jax.config.run import ResolvedRunConfig
from ditsam_jax.errors import UserError
from ditsam_jax.parallel import distributed
from ditsam_jax.terminal import printable, say
from ditsam_jax.training.program import Program, build, remats

VARIABLE = 'DITSAM_DEVICE_MEMORY'  # overrides the memory reported by the device
_UNITS = {'': 1, 'KB': 10**3, 'MB': 10**6, 'GB': 10**9, 'KIB': 2**10, 'MIB': 2**20, 'GIB': 2**30}
_CGROUPS = ('/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/memory/memory.limit_in_bytes')
_OUT_OF_MEMORY = re.compile(r'RESOURCE_EXHAUSTED|[Oo]ut of memory')


def device_memory(mesh: Mesh) -> int | None:
  """Returns the memory per device of this host in bytes; None if unknown.

  On GPUs and TPUs, this is the memory that JAX may allocate; on CPUs, the memory of the machine or container, divided
  by the number of devices. The environment variable DITSAM_DEVICE_MEMORY ('16GiB') overrides it.

  Raises:
    UserError: the variable is not a size.
  """
  return _given() or min((_memory_of(device) or 0 for device in mesh.local_devices), default=0) or None


def compiled(program: Program, config: ResolvedRunConfig) -> Program:
  """Compiles the program's step; if `config.remat` is 'auto', with the fastest that fits. All hosts must call it.

  Raises:
    UserError: the step needs more memory than the devices have; the message names changes that fit.
  """
  available = min(distributed.gathered([device_memory(program.mesh) or 0]))  # 0: unknown on some host
  choices = remats(config, program.mesh.devices.flat[0].platform)
  needed, of = math.inf, f' of {_size(available)}' if available else ''
  for remat in choices:
    chosen = dataclasses.replace(config, remat=remat)
    if remat != choices[0]:
      distributed.tell(f'that needs {_size(needed)}{of}; recomputing more (remat {remat}) ...')
      program = build(chosen, config.model, program.mesh)
    distributed.tell('compiling the training step ...')
    began = time.monotonic()
    try:
      program, step = program.compiled()
      needed = _bytes(step)
    except jax.errors.JaxRuntimeError as error:
      if not _is_out_of_memory(error):
        raise
      needed = math.inf
    if not distributed.on_any_host(needed == math.inf or 0 < available < needed):
      how = f' (remat {remat})' if len(choices) > 1 else ''
      distributed.tell(
        f'compiled in {time.monotonic() - began:.1f} s; a step needs {_size(needed)}{of} on each device{how}'
      )
      return program
  raise UserError(_does_not_fit(needed, available, dataclasses.replace(config, remat=choices[-1]), program.mesh))


def return_freed() -> None:
  """Returns memory that starting and compiling have freed to the system: glibc keeps it, for ViT-B on a CPU 0.8 GB.

  Does nothing with other C libraries.
  """
  with contextlib.suppress(AttributeError, OSError, TypeError):
    ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def explained(program: Program, config: ResolvedRunConfig) -> Iterator[None]:
  """Converts out-of-memory errors of a device to a UserError that names changes needing less memory."""
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if not _is_out_of_memory(error):
      raise
    raise UserError(_ran_out(str(error), config, program.mesh)) from error


def _does_not_fit(needed: float, available: int, config: ResolvedRunConfig, mesh: Mesh) -> str:
  if needed == math.inf:
    problem = f'a training step needs more memory than each device has{f" ({_size(available)})" if available else ""}'
  else:
    problem = (
      f'a training step needs {_size(needed)} of memory on each device, {_size(needed - available)} more than the '
      f'{_size(available)} there'
    )
  distributed.tell(f'{problem}; looking for changes that fit ...')
  return f'{problem}; {_advice(needed, available or sys.maxsize, config, mesh)}'  # unknown: what compiles fits


def _ran_out(message: str, config: ResolvedRunConfig, mesh: Mesh) -> str:
  say('a device ran out of memory; looking for changes that need less ...')
  available = device_memory(mesh)
  for remat in remats(config, mesh.devices.flat[0].platform):  # up to the one that `compiled` chose
    config = dataclasses.replace(config, remat=remat)
    needed = _needed(config, mesh)
    if needed <= (available or math.inf):
      break
  of = f' of {_size(available)}' if available else ''
  problem = (
    f'a device ran out of memory ({printable(" ".join(message.split()))}); a step alone needs {_size(needed)}{of}'
  )
  # The step fits by its compiled size but ran out of memory, so require a fifth less.
  return f'{problem}; {_advice(needed, int(min(0.8 * needed, available or math.inf)), config, mesh)}'


def _advice(needed: float, available: int, config: ResolvedRunConfig, mesh: Mesh) -> str:
  """Compiles the step with each change; returns which ones fit."""
  enough, short = [], []
  changes, least = (
    _changes(config, divisible=_divisors(config, mesh)[-1] > 1),
    _fewest_parts(needed, available, config, mesh),
  )
  for number, of in enumerate(changes, start=1):
    change, found = _try(of, f'{number} of {len(changes)}', least, needed, available, config, mesh)
    (enough if found <= available else short).append(f'{change} ({_size(found)})')
  if enough:
    rest = f'; not enough: {", ".join(short)}' if short else ''
    return f'this would fit: {" or ".join(enough)}{rest}'
  for everything in _together(config, mesh):
    found = _compiled_with(everything, 'together', config, mesh)
    if found <= available:
      return f'no single change is enough ({", ".join(short)}); this would fit: {everything} ({_size(found)})'
  return (
    f'even {everything} needs {_size(found)}; use a device with more memory, more devices (config.mesh.fsdp) or a '
    f'smaller model'
  )


@dataclasses.dataclass(frozen=True)
class _Change:
  """Changes to a config, by the field's name."""

  fields: tuple[tuple[str, Any], ...]

  def applied(self, config: ResolvedRunConfig) -> ResolvedRunConfig:
    values = dict(self.fields)
    if 'data.batch_size' in values:
      values['data'] = dataclasses.replace(config.data, batch_size=values.pop('data.batch_size'))
    return dataclasses.replace(config, **values)

  def __str__(self) -> str:
    return ' '.join(f'--config.{name}={value}' for name, value in self.fields)


def _changes(config: ResolvedRunConfig, divisible: bool) -> list[Callable[[int], _Change]]:
  """Returns single changes, those that preserve results first; some depend on the number of parts of a batch."""
  changes: list[Callable[[int], _Change]] = []
  if config.remat != 'block':
    changes.append(lambda parts: _Change((('remat', 'block'),)))
  if divisible:
    changes.append(lambda parts: _Change((('accumulate', config.accumulate * parts),)))
  if config.dtype == 'float32':
    changes.append(lambda parts: _Change((('dtype', 'bfloat16'),)))
  if _with_frozen_images(config) != config.freeze:
    changes.append(lambda parts: _Change((('freeze', _with_frozen_images(config)),)))
  if divisible:
    changes.append(lambda parts: _Change((('data.batch_size', config.data.batch_size // parts),)))
  return changes


def _together(config: ResolvedRunConfig, mesh: Mesh) -> list[_Change]:
  """Returns combined changes: those that nearly preserve results, and those that need the least memory."""
  rows = _divisors(config, mesh)[-1]
  cheap = ('remat', 'block'), ('dtype', 'bfloat16')
  return [
    _Change((*cheap, ('accumulate', config.accumulate * rows))),
    _Change((*cheap, ('freeze', _with_frozen_images(config)), ('data.batch_size', config.data.batch_size // rows))),
  ]


def _with_frozen_images(config: ResolvedRunConfig) -> str:
  names = [name.strip() for name in config.freeze.split(',') if name.strip()]
  return config.freeze if 'image_encoder' in names else ','.join([*names, 'image_encoder'])


def _try(
  of: Callable[[int], _Change],
  number: str,
  least: float,
  needed: float,
  available: int,
  config: ResolvedRunConfig,
  mesh: Mesh,
) -> tuple[_Change, float]:
  """Returns a change and the memory it needs; a batch is split into `least` parts, or more if that is not enough."""
  divisors = _divisors(config, mesh)

  def first(least: float) -> int:
    return next((parts for parts in divisors if parts >= least), divisors[-1])

  parts = first(least)
  found = _compiled_with(of(parts), number, config, mesh)
  if found > available and of(1) != of(parts) != of(divisors[-1]):
    # Two measurements determine needed = fixed + activations / parts.
    activations = (needed - found) / (1 - 1 / parts)
    room = available - (needed - activations)
    parts = first(max(1.1 * activations / room, parts + 1) if room > 0 and activations < math.inf else math.inf)
    found = _compiled_with(of(parts), number, config, mesh)
  return of(parts), found


def _fewest_parts(needed: float, available: int, config: ResolvedRunConfig, mesh: Mesh) -> float:
  """Estimates the number of parts in which a batch fits; the state stays constant, activations shrink."""
  state = sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(build(config, config.model, mesh).state)
  )
  return max(2, 1.1 * (needed - state) / (available - state)) if available > state else math.inf


def _divisors(config: ResolvedRunConfig, mesh: Mesh) -> list[int]:
  """Returns the numbers of equal parts into which the rows of a micro-batch can be split on each device."""
  micro_batch = config.data.batch_size // config.accumulate
  rows = micro_batch // (mesh.shape['data'] * mesh.shape['fsdp'])
  return [parts for parts in range(1, rows + 1) if rows % (parts * config.sample_group) == 0]


def _compiled_with(change: _Change, number: str, config: ResolvedRunConfig, mesh: Mesh) -> float:
  """Returns the memory of a step after a change; infinite if the change is impossible."""
  distributed.tell(f'  compiling with {change} ({number}) ...')
  try:
    return _needed(change.applied(config), mesh)
  except UserError:  # for example an attention implementation without that dtype
    return math.inf


def _needed(config: ResolvedRunConfig, mesh: Mesh) -> float:
  """Returns the bytes of a step on each device; infinite if compilation runs out of memory."""
  try:
    return _bytes(build(config, config.model, mesh).lower().compile())
  except jax.errors.JaxRuntimeError as error:
    if not _is_out_of_memory(error):
      raise
    return math.inf


def _bytes(step: jax.stages.Compiled) -> int:
  stats = step.memory_analysis()
  if stats is None:  # not reported by this backend
    return 0
  return (
    stats.argument_size_in_bytes
    + stats.output_size_in_bytes
    - stats.alias_size_in_bytes
    + stats.temp_size_in_bytes
    + stats.generated_code_size_in_bytes
  )


def _is_out_of_memory(error: Exception) -> bool:
  return bool(_OUT_OF_MEMORY.search(str(error)))


def _given() -> int | None:
  text = os.environ.get(VARIABLE, '').strip()
  if not text:
    return None
  found = re.fullmatch(r'(\d+(?:\.\d+)?)\s*([KMG]I?B)?', text.upper())
  size = int(float(found[1]) * _UNITS[found[2] or '']) if found else 0
  if size < 1:
    raise UserError(f'{VARIABLE} is {text!r}; expected bytes, or a size such as 16GiB or 500MB')
  return size


def _memory_of(device: Any) -> int | None:
  if device.platform == 'cpu':
    return _machine_memory() // jax.local_device_count()
  stats = device.memory_stats() or {}
  return stats.get('bytes_limit')


def _machine_memory() -> int:
  """Returns the RAM of the machine or container in bytes."""
  sizes = [os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')]
  for file in _CGROUPS:
    with contextlib.suppress(OSError, ValueError):  # not in a container, or 'max'
      sizes.append(int(Path(file).read_text()))
  return min(sizes)


def _size(size: float) -> str:
  if size == math.inf:
    return 'more than the device has'
  return f'{size / 2**30:.2f} GiB' if size >= 2**30 else f'{size / 2**20:.1f} MiB'
