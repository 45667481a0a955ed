"""Memory and estimated time of compiled programs, kept in a JSON file: a program is compiled once.

Figures are cached under everything that determines a program. After a change of the source code, the program is lowered
again (seconds) but compiled again (minutes) only if it differs, or if the analysis does (METHOD).

GPUs that share a compiled program (a100-40 and a100-80) share its figures. For them, programs are compiled for a card
with ample memory: then the compiler never recomputes values to save memory, memory grows by the same amount with every
image, and figures hold for cards of any size.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from ditsam_jax.analysis.chips import CHIPS
from ditsam_jax.analysis.collectives import collectives
from ditsam_jax.analysis.hlo import Module
from ditsam_jax.analysis.operations import operations
from ditsam_jax.analysis.roofline import roofline
from ditsam_jax.analysis.targets import Target, lowering
from ditsam_jax.errors import UserError
from ditsam_jax.lowering import without_source_lines
from ditsam_jax.storage.files import read_json, write_json

# The version of the analysis. To be raised when figures of an unchanged program change; a test notices.
METHOD = 2
_PACKAGE = Path(__file__).parents[1]
# What programs are made of: after a change of these files, programs are compared.
_SOURCES = (
  *('models/*.py', 'ops/**/*.py'),
  *(f'parallel/{name}.py' for name in ('activations', 'sharding', 'weights')),
  *(f'training/{name}.py' for name in ('loss', 'optimizer', 'program', 'prompt_rounds', 'step')),
)


@dataclasses.dataclass(frozen=True)
class Figures:
  """A compiled program on one chip."""

  bytes: int | None  # memory it needs; None if it does not fit a TPU and the compiler does not say what it needs
  seconds: dict[str, float] | None  # estimated time by chip; None if it does not fit
  compile_seconds: float

  def fits(self, target: Target) -> bool:
    """Whether a chip's memory is enough."""
    return self.seconds is not None and self.bytes is not None and self.bytes <= target.chip.usable_bytes


def figures(lowered: jax.stages.Lowered, target: Target) -> Figures:
  """Compiles a program and returns its figures."""
  started = time.monotonic()
  try:
    compiled = lowered.compile(compiler_options=target.options)
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    return Figures(_used(str(error)), None, time.monotonic() - started)
  seconds = time.monotonic() - started
  stats: Any = compiled.memory_analysis()
  needed = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
  needed += stats.temp_size_in_bytes + stats.generated_code_size_in_bytes
  module = Module(compiled.as_text() or '')
  work, sent = operations(module), collectives(module, target.per_host)
  times = {}
  for chip in CHIPS.values():
    same = dataclasses.replace(target, chip=chip)
    if same.compiler == target.compiler:
      times[chip.name] = roofline(chip, work, sent, same.network_bandwidth).step
  return Figures(needed, times, seconds)


class Store:
  """Figures by a description of their program, in a JSON file that is written after every compilation.

  Processes may share the file: what others have added is kept.
  """

  def __init__(self, file: Path | None, outdated: bool = False):
    """Reads the file if it exists.

    Args:
      file: where figures are kept; None keeps them in memory.
      outdated: `get` also returns figures of earlier source code, to show them.

    Raises:
      UserError: it is not such a file.
    """
    self._file, self._outdated = file, outdated
    self._all = self._read()

  def get(self, description: dict[str, Any], target: Target) -> Figures | None:
    """Returns the figures of a program, or None if they are not known for the present source code."""
    entry = self._all.get(_key(description, target))
    if entry is None or not self._outdated and (not _covers(entry, target) or entry.get('sources') != _source_hash()):
      return None
    return _figures_of(entry)

  def find(
    self,
    description: dict[str, Any],
    target: Target,
    lower: Callable[[], jax.stages.Lowered],
    make: Callable[[jax.stages.Lowered], Figures],
  ) -> Figures:
    """Returns the figures of a program.

    Args:
      description: what determines the program, apart from the source code.
      target: what it is compiled for.
      lower: lowers the program for the target, if its figures are not known for the present source code.
      make: compiles it, if its figures are not known.
    """
    if (known := self.get(description, target)) is not None:
      return known
    key = _key(description, target)
    entry = self._all.get(key, {})
    with lowering(target):
      with without_source_lines():
        lowered = lower()
      program = hashlib.sha256(lowered.as_text().encode()).hexdigest()
      if entry.get('program') != program or not _covers(entry, target):
        entry = dataclasses.asdict(make(lowered))
        entry |= {'target': _made_for(target), 'program': program, 'method': METHOD}
    self._all[key] = entry | {'sources': _source_hash()}
    if self._file is not None:
      self._file.parent.mkdir(parents=True, exist_ok=True)
      self._all |= self._read() | {key: self._all[key]}
      write_json(self._file, self._all)
    return _figures_of(entry)

  def _read(self) -> dict[str, dict[str, Any]]:
    if self._file is None or not self._file.exists():
      return {}
    found = read_json(self._file)
    if not isinstance(found, dict) or not all(map(_is_entry, found.values())):
      raise UserError(f'{self._file} holds no figures of compiled programs; give another file, or delete it')
    return found


def _figures_of(entry: dict[str, Any]) -> Figures:
  return Figures(entry['bytes'], entry['seconds'], entry['compile_seconds'])


def _covers(entry: dict[str, Any], target: Target) -> bool:
  """Whether an entry was made by the present analysis, for the target's chip among others."""
  return entry.get('method') == METHOD and (entry['seconds'] is None or target.chip.name in entry['seconds'])


def _is_entry(value: Any) -> bool:
  match value:
    case {'bytes': int() | None, 'seconds': (dict() | None) as times, 'compile_seconds': int() | float()}:
      return all(isinstance(seconds, int | float) for seconds in (times or {}).values())
  return False


def _key(description: dict[str, Any], target: Target) -> str:
  parts = [description, _made_for(target), _versions(target)]
  return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def _made_for(target: Target) -> list[Any]:
  return [target.compiler, target.count, target.per_host]


@functools.cache
def _versions(target: Target) -> list[str]:
  """Installed versions of JAX and the target's compiler."""
  packages = ['jax', 'jaxlib'] + (['jax-cuda12-pjrt', 'jax-cuda13-pjrt'] if target.chip.silicon else ['libtpu'])
  found = []
  for package in packages:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found.append(f'{package} {importlib.metadata.version(package)}')
  return found


@functools.cache
def _source_hash() -> str:
  """A hash of the source code that programs are made of."""
  content = hashlib.sha256()
  for pattern in _SOURCES:
    files = sorted(_PACKAGE.glob(pattern))
    assert files, pattern
    for file in files:
      content.update(file.read_bytes())
  return content.hexdigest()


def _used(message: str) -> int | None:
  """The bytes that the TPU compiler says a program would use."""
  found = re.search(r'Used ([\d.]+)([MG]) of', message)
  return int(float(found.group(1)) * {'M': 2**20, 'G': 2**30}[found.group(2)]) if found else None
