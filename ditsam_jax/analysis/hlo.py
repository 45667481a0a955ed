"""Parses XLA's text form of optimised HLO: instructions, and how often each computation runs per call."""

import dataclasses
import functools
import math
import re

_DTYPE_BITS = {
  'pred': 8,
  's4': 4,
  'u4': 4,
  's8': 8,
  'u8': 8,
  's16': 16,
  'u16': 16,
  's32': 32,
  'u32': 32,
  's64': 64,
  'u64': 64,
  'f16': 16,
  'bf16': 16,
  'f32': 32,
  'f64': 64,
  'c64': 64,
  'c128': 128,
}
_LEAF = re.compile(r'([a-z]\w*)\[([\d,<= ]*)\](?:\{([^}]*)\})?')
_HEADER = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$')
_NAMED = re.compile(r'^\s+(ROOT )?%?([\w.\-]+) = ')
_OPCODE = re.compile(r'\s*([\w\-]+)\(')
_OPERAND = re.compile(r'%([\w.\-]+)')
_CALLED = re.compile(r'(?:body|condition|calls|to_apply|true_computation|false_computation)=%([\w.\-]+)')
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
  """The shape of one array. `memory_space` 0 is the device's main memory (HBM); other spaces are on-chip."""

  dtype: str
  dims: tuple[int, ...]
  memory_space: int

  @property
  def size(self) -> int:
    """Number of elements."""
    return math.prod(self.dims)

  @property
  def bytes(self) -> int:
    """Bytes without tile padding; 0 for tokens and opaque values."""
    bits = 8 if self.dtype.startswith('f8') else _DTYPE_BITS.get(self.dtype, 0)
    return self.size * bits // 8


@dataclasses.dataclass(frozen=True, slots=True)
class Instruction:
  """One line of HLO; `shapes` are the leaves of its result, `attributes` the text after the operands."""

  name: str
  opcode: str
  shapes: tuple[Shape, ...]
  operands: tuple[str, ...]
  arguments: str
  attributes: str
  is_root: bool

  @property
  def op_name(self) -> str:
    """The JAX operation it comes from, or '' if there is no metadata."""
    found = re.search(r'op_name="([^"]*)"', self.attributes)
    return found.group(1).replace("\\'", "'") if found else ''

  def called(self, role: str) -> str:
    """The computation that attribute `role` ('calls', 'body', 'condition') names, or ''."""
    found = re.search(rf'\b{role}=%([\w.\-]+)', self.attributes)
    return found.group(1) if found else ''


ASYNC_START = 'AsyncCollectiveStart'  # custom call in the fusion that starts an asynchronous collective


class Computation:
  """Instructions by name, in schedule order."""

  def __init__(self, name: str):
    self.name = name
    self.instructions: dict[str, Instruction] = {}

  @property
  def root(self) -> Instruction:
    """The instruction that produces the result."""
    return next(i for i in reversed(self.instructions.values()) if i.is_root)

  @functools.cached_property
  def parameters(self) -> dict[str, int]:
    """Parameter numbers by name."""
    return {i.name: int(i.arguments) for i in self.instructions.values() if i.opcode == 'parameter'}

  def calls(self, target: str) -> bool:
    """Whether it contains a custom call to `target`."""
    return any(
      i.opcode == 'custom-call' and f'custom_call_target="{target}"' in i.attributes for i in self.instructions.values()
    )

  @functools.cached_property
  def users(self) -> dict[str, list[Instruction]]:
    """The instructions that use each value."""
    users: dict[str, list[Instruction]] = {}
    for instruction in self.instructions.values():
      for operand in set(instruction.operands):
        users.setdefault(operand, []).append(instruction)
    return users


class Module:
  """An HLO program."""

  def __init__(self, text: str):
    """Parses the output of `compiled.as_text()`. Raises ValueError if it has no entry computation."""
    self.computations: dict[str, Computation] = {}
    entry, current, preamble = None, None, []
    for line in text.splitlines():
      if current is None:
        header = _HEADER.match(line)
        if not self.computations and not header:
          preamble.append(line)
        if header:
          current = self.computations[header.group(2)] = Computation(header.group(2))
          entry = current if header.group(1) else entry
      elif line.startswith('}'):
        current = None
      else:
        instruction = _instruction(line)
        if instruction:
          current.instructions[instruction.name] = instruction
    if entry is None:
      raise ValueError('no ENTRY computation in this text; expected HLO as printed by compiled.as_text()')
    self.entry = entry
    self.preamble = '\n'.join(preamble)  # tables of source lines, see sources.py
    partitions = re.search(r'num_partitions=(\d+)', text[: text.find('\n')])
    self.partitions = int(partitions.group(1)) if partitions else 1

  @functools.cached_property
  def executions(self) -> dict[str, int]:
    """How often each scheduled computation runs; loop bodies by trip count, each branch of a conditional once.

    Excludes the computations inside fusions and reductions, which belong to their instruction.
    """
    counts: dict[str, int] = {}
    self._count(self.entry, 1, counts)
    return counts

  @functools.cached_property
  def endless(self) -> list[str]:
    """Loops whose trip count cannot be determined; they are counted once."""
    return [
      i.name
      for name in self.executions
      for i in self.computations[name].instructions.values()
      if i.opcode == 'while' and self.trip_count(self.computations[name], i) is None
    ]

  def _count(self, computation: Computation, times: int, counts: dict[str, int]) -> None:
    counts[computation.name] = counts.get(computation.name, 0) + times
    for instruction in computation.instructions.values():
      if instruction.opcode == 'while':
        trips = self.trip_count(computation, instruction)
        self._count(self.computations[instruction.called('body')], times * (1 if trips is None else trips), counts)
      elif instruction.opcode in ('call', 'conditional', 'async-start'):
        for name in _called(instruction):
          self._count(self.computations[name], times, counts)

  def trip_count(self, caller: Computation, loop: Instruction) -> int | None:
    """The trip count of a while loop: XLA's, or derived from its counter's start, step and limit; None if unknown."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
      return int(known.group(1))
    condition, body = (self.computations[loop.called(role)] for role in ('condition', 'body'))
    condition, test, outside = self._through_fusion(condition, condition.root)
    direction = re.search(r'direction=(\w+)', test.attributes) if test.opcode == 'compare' else None
    if direction is None or direction.group(1) not in ('LT', 'LE', 'NE'):
      return None
    counter, limit = (self._linear(condition, outside, operand) for operand in test.operands)
    if not counter or not limit or counter[0] is None or limit[0] is not None:
      return None
    step = self._element(body, body.root, counter[0])
    start = self._element(caller, caller.instructions[loop.operands[0]], counter[0])
    if not step or step[0] != counter[0] or step[1] <= 0 or not start or start[0] is not None:
      return None
    distance = limit[1] - counter[1] - start[1] + (direction.group(1) == 'LE')
    return max(0, -(-distance // step[1]))

  def _through_fusion(self, computation, instruction):
    """Steps into a fusion: returns (computation, root, environment), where environment resolves its parameters."""
    if instruction.opcode != 'fusion':
      return computation, instruction, None
    inner = self.computations[instruction.called('calls')]
    return inner, inner.root, (computation, instruction)

  def _element(self, computation: Computation, value: Instruction, index: int) -> tuple[int | None, int] | None:
    """The linear form of one tuple element."""
    while value.opcode in ('copy', 'opt-barrier'):
      value = computation.instructions[value.operands[0]]
    return self._linear(computation, None, value.operands[index]) if value.opcode == 'tuple' else None

  def _linear(self, computation, outside, name: str) -> tuple[int | None, int] | None:
    """Returns (k, c) for the value `element k of the loop state + c`, (None, c) for a constant, None for the rest."""
    value = computation.instructions[name]

    def follow(operand):
      return self._linear(computation, outside, operand)

    if value.opcode == 'constant':
      return (None, int(value.arguments)) if re.fullmatch(r'-?\d+', value.arguments) else None
    if value.opcode in ('copy', 'bitcast', 'convert', 'reshape'):
      return follow(value.operands[0])
    if value.opcode == 'get-tuple-element':
      index = re.search(r'index=(\d+)', value.attributes)
      of = computation.instructions[value.operands[0]]
      return (int(index.group(1)), 0) if index and of.opcode == 'parameter' and outside is None else None
    if value.opcode == 'add':
      terms = [term for term in map(follow, value.operands) if term is not None]
      if len(terms) < len(value.operands) or all(index is not None for index, _ in terms):
        return None
      return next((i for i, _ in terms if i is not None), None), sum(c for _, c in terms)
    if value.opcode == 'fusion' and outside is None:
      inner, root, environment = self._through_fusion(computation, value)
      return self._linear(inner, environment, root.name)
    if value.opcode == 'parameter' and outside is not None:
      caller, fusion = outside
      return self._linear(caller, None, fusion.operands[int(value.arguments)])
    return None


def _called(instruction: Instruction) -> list[str]:
  branches = _BRANCHES.search(instruction.attributes)
  return _OPERAND.findall(branches.group(1)) if branches else _CALLED.findall(instruction.attributes)


def _instruction(line: str) -> Instruction | None:
  named = _NAMED.match(line)
  if not named:
    return None
  start = named.end()
  end = _closing(line, start) + 1 if line[start] == '(' else line.index(' ', start)
  opcode = _OPCODE.match(line, end)
  if not opcode:
    raise ValueError(f'no operation in HLO: {line[:80]}')
  close = _closing(line, opcode.end() - 1)
  arguments = line[opcode.end() : close]
  return Instruction(
    named.group(2),
    opcode.group(1),
    _shapes(line[start:end]),
    tuple(_OPERAND.findall(arguments)),
    arguments,
    line[close + 1 :],
    bool(named.group(1)),
  )


@functools.lru_cache(1 << 16)
def _shapes(text: str) -> tuple[Shape, ...]:
  shapes = []
  for dtype, dims, layout in _LEAF.findall(text):
    space = re.search(r'S\((\d+)\)', layout or '')
    sizes = tuple(int(size.strip(' <=')) for size in dims.split(',') if size.strip())
    shapes.append(Shape(dtype, sizes, int(space.group(1)) if space else 0))
  return tuple(shapes)


def _closing(text: str, start: int) -> int:
  """The index of the parenthesis that closes the one at `start`; quoted text is skipped."""
  depth, quoted = 0, False
  for place in range(start, len(text)):
    character = text[place]
    if character == '"' and text[place - 1] != '\\':
      quoted = not quoted
    elif not quoted and character == '(':
      depth += 1
    elif not quoted and character == ')':
      depth -= 1
      if depth == 0:
        return place
  raise ValueError(f'unbalanced parentheses in HLO: {text[start : start + 80]}')
