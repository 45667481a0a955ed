"""FLOPs and memory traffic of each operation in a program's optimised HLO.

FLOPs are those of matrix products and convolutions: two per multiply-add, excluding padding and the zeros of dilation.
Bytes are reads and writes of the device's main memory: values in on-chip memory spaces are free, also those that a
kernel reads and writes; a slice costs its own size, an in-place update the size of the update, and memory that is
reserved without being written nothing. Loop bodies are multiplied by their trip counts, unlike in XLA's
own cost analysis.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable

from ditsam_jax.analysis import kernels
from ditsam_jax.analysis.hlo import ASYNC_START, Computation, Instruction, Module, Shape
from ditsam_jax.analysis.sources import Sources

_FREE = {
  'parameter',
  'constant',
  'tuple',
  'get-tuple-element',
  'bitcast',
  'while',
  'call',
  'conditional',
  'after-all',
  'partition-id',
  'replica-id',
  'opt-barrier',
  'async-start',
  'async-update',
  'domain',
  'add-dependency',
}
_SLICES = {'dynamic-slice', 'slice', 'gather'}


@dataclasses.dataclass(frozen=True)
class Operation:
  """A scheduled instruction and its cost per execution."""

  flops: int
  bytes: int  # read from and written to main memory
  times: int  # executions per call of the program
  overlapped: bool  # an asynchronous copy that runs concurrently with other work
  op_name: str
  f32: bool = False  # multiplies f32 arrays
  name: str = ''  # the instruction's
  result: str = ''  # types and shapes of its largest result, for display
  source: str = ''  # lines of source code, see sources.py

  @property
  def kind(self) -> str:
    """The instruction's name without its number."""
    return re.sub(r'[.\d]+$', '', self.name)


def operations(module: Module) -> list[Operation]:
  """Returns all scheduled instructions with a cost."""
  found, sources = [], Sources(module)
  for name, times in module.executions.items():
    computation = module.computations[name]
    for instruction in computation.instructions.values():
      flops, moved = _flops(module, computation, instruction), _bytes(module, computation, instruction)
      if flops or moved:
        f32 = flops > 0 and _multiplies_f32(module, computation, instruction)
        op_name, source = sources.of(computation, instruction)
        # cuBLAS and cuDNN return their scratch memory as bytes.
        results = [shape for shape in instruction.shapes if shape.dtype not in ('s8', 'u8')] or instruction.shapes
        result = max(results, key=lambda shape: shape.bytes)
        shape = f'{result.dtype}[{",".join(map(str, result.dims))}]'
        overlapped = instruction.opcode.endswith('-start')
        found.append(Operation(flops, moved, times, overlapped, op_name, f32, instruction.name, shape, source))
  return found


def heaviest(found: list[Operation]) -> list[list[Operation]]:
  """The ten operations that move most bytes, those of one JAX operation and line together; most first."""
  groups: dict[tuple[str, str, str], list[Operation]] = {}
  for operation in found:
    groups.setdefault((operation.kind, re.sub(r'\d+', '*', operation.op_name), operation.source), []).append(operation)
  return sorted(groups.values(), key=lambda group: -moved(group))[:10]


def moved(found: Iterable[Operation]) -> int:
  """The bytes that operations move, all executions together."""
  return sum(operation.bytes * operation.times for operation in found)


# ------------------------------------------------------------------------------------------------------------- FLOPs
def _flops(module: Module, computation: Computation, instruction: Instruction) -> int:
  if instruction.opcode == 'fusion':
    return _fusion_flops(module, instruction.called('calls'))
  if instruction.opcode == 'dot':
    left = computation.instructions[instruction.operands[0]].shapes[0]
    contracted = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', instruction.attributes)
    sizes = [left.dims[int(axis)] for axis in contracted.group(1).split(',') if axis] if contracted else []
    return 2 * instruction.shapes[0].size * functools.reduce(int.__mul__, sizes, 1)
  if instruction.opcode == 'convolution':
    image, kernel = (computation.instructions[name].shapes[0] for name in instruction.operands)
    return _convolution_flops(instruction, image, kernel, instruction.shapes[0])
  if instruction.opcode == 'custom-call':
    if convolved := kernels.convolution(computation, instruction):
      return _convolution_flops(instruction, *convolved)
    found = kernels.flops(computation, instruction)
    return (_cost_estimate(instruction, 'flops') or 0) if found is None else found
  return 0


def _multiplies_f32(module: Module, computation: Computation, instruction: Instruction) -> bool:
  """Whether an operation's products have an f32 operand on the left."""
  if instruction.opcode == 'fusion':
    inner = module.computations[instruction.called('calls')]
    return any(_multiplies_f32(module, inner, i) for i in inner.instructions.values() if _flops(module, inner, i))
  return computation.instructions[instruction.operands[0]].shapes[0].dtype == 'f32'


def _cost_estimate(instruction: Instruction, field: str) -> int | None:
  """A field of the cost estimate that a Pallas kernel declares, or None."""
  found = re.search(rf'"cost_estimate":\{{[^}}]*"{field}":"?(\d+)', instruction.attributes)
  return int(found.group(1)) if found else None


def _fusion_flops(module: Module, name: str) -> int:
  inner = module.computations[name]
  return sum(
    _flops(module, inner, i) for i in inner.instructions.values() if i.opcode in ('fusion', 'dot', 'convolution')
  )


def _convolution_flops(instruction: Instruction, image: Shape, kernel: Shape, out: Shape) -> int:
  """Two FLOPs per pair of image and kernel elements that are multiplied. On TPUs all products are convolutions."""
  labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', instruction.attributes)
  window = re.search(r'window=\{([^}]*)\}', instruction.attributes)
  window = dict(part.split('=') for part in window.group(1).split()) if window else {}
  if labels is None:
    raise ValueError(f'no dim_labels of convolution {instruction.name}; expected HLO as printed by compiled.as_text()')
  image_axes, kernel_axes, out_axes = labels.groups()
  pairs = 1
  for axis in range(sum(label.isdigit() for label in out_axes)):

    def field(name, default, axis=axis):
      return window[name].split('x')[axis] if name in window else default

    low = int(field('pad', '0_0').split('_')[0])
    pairs *= _overlaps(
      image.dims[image_axes.index(str(axis))],
      kernel.dims[kernel_axes.index(str(axis))],
      out.dims[out_axes.index(str(axis))],
      int(field('stride', 1)),
      low,
      int(field('lhs_dilate', 1)),
      int(field('rhs_dilate', 1)),
    )
  groups = re.search(r'batch_group_count=(\d+)', instruction.attributes)
  batch = image.dims[image_axes.index('b')] // (int(groups.group(1)) if groups else 1)
  return 2 * batch * kernel.dims[kernel_axes.index('i')] * kernel.dims[kernel_axes.index('o')] * pairs


@functools.lru_cache(1 << 14)
def _overlaps(size: int, kernel: int, out: int, stride: int, low: int, dilation: int, kernel_dilation: int) -> int:
  """Number of (output, kernel) positions along one axis that read an input value, not padding or dilation zeros."""
  end = (size - 1) * dilation
  positions = (o * stride + k * kernel_dilation - low for o in range(out) for k in range(kernel))
  return sum(0 <= position <= end and position % dilation == 0 for position in positions)


# ------------------------------------------------------------------------------------------------------------- bytes
def _bytes(module: Module, computation: Computation, instruction: Instruction) -> int:
  opcode = instruction.opcode
  if opcode in _FREE or opcode.endswith('-done') or kernels.target(instruction) == 'AllocateBuffer':
    return 0
  operands = [computation.instructions[name].shapes for name in instruction.operands]
  if opcode == 'custom-call' and (declared := _cost_estimate(instruction, 'bytes_accessed')) is not None:
    return _of_kernel(declared, operands, instruction.shapes)
  if opcode == 'fusion':
    inner = module.computations[instruction.called('calls')]
    read = sum(_read(module, inner, number, shapes) for number, shapes in enumerate(operands))
    return read + _written(module, inner, instruction.shapes)
  written = kernels.workspaces(instruction.shapes) if opcode == 'custom-call' else instruction.shapes
  if opcode == 'copy-start':  # results are (destination, source, ...)
    written = written[:1]
  elif opcode.endswith('-start') and len(written) > len(operands):  # (sources, destinations, ...); all-reduce: results
    written = written[len(operands) : 2 * len(operands)]
  if opcode in _SLICES or opcode in ('slice-start', 'dynamic-slice-start'):
    source = operands[0][0]
    read = 0 if source.memory_space else sum(shape.bytes for shape in written)
    return read + _in_hbm(written)
  if opcode == 'dynamic-update-slice':
    update = operands[1][0]
    return _in_hbm(operands[1]) + (0 if instruction.shapes[0].memory_space else update.bytes)
  return sum(map(_in_hbm, operands)) + _in_hbm(written)


def _of_kernel(declared: int, operands: list[tuple[Shape, ...]], results: tuple[Shape, ...]) -> int:
  """The bytes that a kernel declares, which may read an array several times, less those of arrays in on-chip memory."""
  shapes = [shape for operand in (*operands, results) for shape in operand]
  everything = sum(shape.bytes for shape in shapes)
  return round(declared * _in_hbm(tuple(shapes)) / everything) if everything else declared


def _in_hbm(shapes: tuple[Shape, ...]) -> int:
  return sum(shape.bytes for shape in shapes if shape.memory_space == 0)


def _read(module: Module, inner: Computation, number: int, shapes: tuple[Shape, ...]) -> int:
  """Bytes a fusion reads of operand `number`: all of it, or only its slices."""
  if _in_hbm(shapes) == 0:
    return 0
  name = next(name for name, place in inner.parameters.items() if place == number)
  return min(_in_hbm(shapes), _sliced(module, inner, name, shapes[0].bytes))


def _sliced(module: Module, inner: Computation, name: str, full: int) -> int:
  """Bytes of the slices that a fusion takes of value `name`, or `full` if it uses all of it."""
  total = 0
  for user in inner.users.get(name, []):
    if user.opcode in _SLICES and user.operands[0] == name:
      total += user.shapes[0].bytes
    elif user.opcode == 'dynamic-update-slice' and user.operands[0] == name:
      continue  # in place
    elif user.opcode == 'bitcast':
      total += _sliced(module, inner, user.name, full)
    elif user.opcode == 'fusion':
      nested = module.computations[user.called('calls')]
      total += sum(
        _sliced(module, nested, parameter, full)
        for parameter, place in nested.parameters.items()
        if user.operands[place] == name
      )
    elif user.opcode == 'tuple' or _continues_async(inner, user):
      continue
    else:
      return full
  return total


def _continues_async(inner: Computation, user: Instruction) -> bool:
  """Whether this is a later part of an asynchronous collective, whose bytes are counted at its start."""
  is_collective = re.match('all-|reduce-scatter|collective-', user.opcode) is not None
  return not inner.calls(ASYNC_START) and (is_collective or 'AsyncCollective' in user.attributes)


def _written(module: Module, inner: Computation, shapes: tuple[Shape, ...]) -> int:
  """Bytes a fusion writes: values passed through are free, an in-place update costs the size of the update."""
  root = inner.root
  if root.opcode == 'custom-call' and 'AsyncCollective' in root.attributes:
    return _in_hbm(shapes[1:]) if 'AsyncCollectiveStart' in root.attributes else 0
  values = [inner.instructions[name] for name in root.operands] if root.opcode == 'tuple' else [root]
  return sum(_stored(module, inner, value, shape) for value, shape in zip(values, shapes) if shape.memory_space == 0)


def _stored(module: Module, inner: Computation, value: Instruction, shape: Shape) -> int:
  while value.opcode == 'bitcast':
    value = inner.instructions[value.operands[0]]
  if value.opcode == 'parameter' or _continues_async(inner, value):
    return 0
  if value.opcode == 'dynamic-update-slice':
    return inner.instructions[value.operands[1]].shapes[0].bytes
  if value.opcode == 'fusion':
    nested = module.computations[value.called('calls')]
    return _written(module, nested, (shape,)) if nested.root.opcode != 'tuple' else shape.bytes
  return shape.bytes
