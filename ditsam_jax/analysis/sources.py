"""The lines of source code that instructions of optimised HLO come from.

XLA's text form lists files, locations and stack frames at its top, and instructions name a frame. Older versions name
the file and line themselves.
"""

import re

from ditsam_jax.analysis.hlo import Computation, Instruction, Module

_TABLES = ('FileNames', 'FunctionNames', 'FileLocations', 'StackFrames')
_ROW = re.compile(r'(\d+) (.*)')
_LIBRARIES = ('/site-packages/', '/dist-packages/', '/lib/python')
_MOST_STEPS = 8  # from a copy to the value it copies


class Sources:
  """Finds the operations and source lines of a module's instructions."""

  def __init__(self, module: Module):
    """Reads the tables of a module; without any, only lines named in place are found."""
    self._module = module
    tables: dict[str, dict[int, str]] = {name: {} for name in _TABLES}
    current: dict[int, str] = {}
    for line in module.preamble.splitlines():
      current = tables.get(line, current)
      if row := _ROW.match(line):
        current[int(row.group(1))] = row.group(2)
    self._files = {number: name.strip('"') for number, name in tables['FileNames'].items()}
    self._locations = {number: _numbers(row) for number, row in tables['FileLocations'].items()}
    self._frames = {number: _numbers(row) for number, row in tables['StackFrames'].items()}

  def of(self, computation: Computation, instruction: Instruction) -> tuple[str, str]:
    """The JAX operation of an instruction and where it is, 'package/file.py:12 < package/caller.py:34'; '' if unknown.

    Lines in installed libraries are left out. Copies, which the compiler adds, have neither: they get those of the
    value that they copy.
    """
    for _ in range(_MOST_STEPS):
      line = self._line(instruction) or self._inside(instruction)
      if line or instruction.op_name:
        return instruction.op_name, line
      if not instruction.operands:  # the state of a loop, say
        users = computation.users.get(instruction.name, [])
        return next(((user.op_name, line) for user in users if (line := self._line(user))), ('', ''))
      instruction = computation.instructions[instruction.operands[0]]
    return '', ''

  def _inside(self, instruction: Instruction) -> str:
    """The line of the last instruction of a fusion that has one."""
    inner = self._module.computations.get(instruction.called('calls')) if instruction.opcode == 'fusion' else None
    if inner is None:
      return ''
    return next((line for i in reversed(inner.instructions.values()) if (line := self._line(i))), '')

  def _line(self, instruction: Instruction) -> str:
    named = re.search(r'source_file="([^"]*)"[^}]*source_line=(\d+)', instruction.attributes)
    if named:
      return f'{_shortened(named.group(1))}:{named.group(2)}'
    found = re.search(r'stack_frame_id=(\d+)', instruction.attributes)
    number, lines = int(found.group(1)) if found else 0, []
    while number in self._frames and len(lines) < len(self._frames):
      frame = self._frames[number]
      location = self._locations.get(frame.get('file_location_id', 0), {})
      file = self._files.get(location.get('file_name_id', 0), '')
      lines.append((file, f'{_shortened(file)}:{location.get("line", 0)}'))
      number = frame.get('parent_frame_id', 0) - 1  # 1: no parent
    own = [line for file, line in lines if file and not any(library in file for library in _LIBRARIES)]
    own = list(dict.fromkeys(own))  # a line that calls its own function is there twice
    return ' < '.join(own[:2]) if own else lines[0][1] if lines else ''


def _numbers(row: str) -> dict[str, int]:
  return {name: int(value) for name, value in re.findall(r'(\w+)=(\d+)', row)}


def _shortened(file: str) -> str:
  """The path from the package's folder on, or the last two parts."""
  parts = file.split('/')
  # The innermost folder of that name: the package, not the repository.
  start = max((i for i, part in enumerate(parts) if i and part == 'ditsam_jax'), default=-2)
  return '/'.join(parts[start:])
