"""FLOPs of the library calls and kernels in a program for NVIDIA GPUs, which HLO shows as custom calls.

cuBLAS and cuDNN get products and convolutions; attention is cuDNN's or one of our Triton kernels
(ops/attention/pallas_gpu.py), whose backend drops the costs that kernels declare. Recomputed products count.
"""

import math
import re

from ditsam_jax.analysis.hlo import Computation, Instruction, Shape

# Products of [N, D] or [N, N] arrays per head: with queries' and keys' channels D, and with their extra channels R.
_TRITON = {'attention_forward': (2, 1), 'attention_queries': (3, 2), 'attention_keys': (4, 1)}


def target(instruction: Instruction) -> str:
  """The function that a custom call runs, or ''."""
  found = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
  return found.group(1) if found else ''


def flops(computation: Computation, instruction: Instruction) -> int | None:
  """FLOPs of a custom call to cuBLAS or for attention; None for other calls."""
  name = target(instruction)
  operands = [computation.instructions[operand].shapes[0] for operand in instruction.operands]
  if name.startswith('__cublas$'):
    return _product(instruction, operands[0])
  if name.startswith('__cudnn$fmha'):
    return _cudnn_attention(instruction, operands, 'Backward' in name)
  if 'triton' in name:
    return _our_attention(instruction, operands)
  return None


def convolution(computation: Computation, instruction: Instruction) -> tuple[Shape, Shape, Shape] | None:
  """The image, kernel and output of cuDNN's convolution, in whichever direction it runs; None for other calls."""
  name = target(instruction)
  if not name.startswith('__cudnn$conv'):
    return None
  first, second = (computation.instructions[operand].shapes[0] for operand in instruction.operands[:2])
  result = instruction.shapes[0]
  if 'BackwardInput' in name:
    return result, second, first
  if 'BackwardFilter' in name:
    return first, result, second
  return first, second, result


def workspaces(shapes: tuple[Shape, ...]) -> tuple[Shape, ...]:
  """Results of a library call without its scratch memory, which comes as an array of bytes."""
  return tuple(shape for shape in shapes if shape.dtype not in ('s8', 'u8'))


def _product(instruction: Instruction, left: Shape) -> int:
  contracted = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.attributes)
  axes = [int(axis) for axis in re.findall(r'\d+', contracted.group(1))] if contracted else []
  return 2 * instruction.shapes[0].size * math.prod(left.dims[axis] for axis in axes)


def _cudnn_attention(instruction: Instruction, operands: list[Shape], backward: bool) -> int:
  """[N, N] logits times the channels of queries (logits; backward also dq, dk) and of values (out; dv, dweights)."""
  logits = re.search(r'"intermediate_tensor_shape": ?\{[^\[]*"dimensions": ?\[([^\]]*)\]', instruction.attributes)
  if logits is None:
    return 0
  pairs = math.prod(int(size) for size in re.findall(r'\d+', logits.group(1)))
  queries, values = operands[0].dims[-1], operands[2].dims[-1]
  return 2 * pairs * (3 * queries + 2 * values if backward else queries + values)


def _our_attention(instruction: Instruction, operands: list[Shape]) -> int | None:
  kernel = next((name for name in _TRITON if name in instruction.op_name.split('/')), None)
  if kernel is None:
    return None
  own, extra = _TRITON[kernel]
  queries, channels = operands[0], operands[3].dims[-1]
  return 2 * queries.size // queries.dims[-1] * queries.dims[-2] * (own * queries.dims[-1] + extra * channels)
