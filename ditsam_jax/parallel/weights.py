"""Sharding of every weight, by name: the first pattern that matches its dotted path decides.

At rest a weight is spread over `fsdp` (and `tensor`); a computation gathers the `fsdp` shares of what it uses, and its
gradient is summed into shares again. An axis that does not divide its dimension is left out.
"""

import functools
import re

import jax
import numpy as np
from jax.sharding import PartitionSpec

from ditsam_jax.parallel.activations import AXES, FSDP, TENSOR, axis_size

RULES = (
  (r'.*\.(qkv|lin1)\.kernel', (FSDP, TENSOR)),
  (r'.*\.(proj|lin2)\.kernel', (TENSOR, FSDP)),
  (r'.*\.lin1\.bias', (TENSOR,)),
  (r'text_encoder\.layers\.\d+\.(query|key|value|intermediate)\.kernel', (FSDP, TENSOR)),
  (r'text_encoder\.layers\.\d+\.(query|key|value|intermediate)\.bias', (TENSOR,)),
  (r'text_encoder\.layers\.\d+\.(attention_output|output)\.kernel', (TENSOR, FSDP)),
  (r'.*_embeddings\.embedding', (None, FSDP)),
  (r'.*(scale|bias|rel_pos_[hw]|gaussian_matrix|_tokens?|no_mask_embed)', ()),  # small: a copy everywhere
)


def spec_at_rest(name: str, shape: tuple[int, ...], sizes: dict[str, int]) -> PartitionSpec:
  """Of a weight of that dotted path, on a mesh of those axis sizes; what no rule names, over its largest dimension."""
  for pattern, axes in RULES:
    if re.fullmatch(pattern, name):
      break
  else:
    largest = int(np.argmax(shape)) if shape else 0
    axes = (None,) * largest + (FSDP,)
  return PartitionSpec(*(axis if axis and size % sizes[axis] == 0 else None for axis, size in zip(axes, shape)))


def at_use(weights: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """Weights by dotted path as a computation takes them: whole but for `tensor`. No change where no mesh is set."""
  if axis_size(FSDP) == 1:
    return weights
  sizes = {axis: axis_size(axis) for axis in AXES}
  return {name: _gathered(weight, spec_at_rest(name, weight.shape, sizes)) for name, weight in weights.items()}


def _gathered(weight: jax.Array, at_rest: PartitionSpec) -> jax.Array:
  used = PartitionSpec(*(None if axis == FSDP else axis for axis in at_rest))
  return weight if used == at_rest else _gather(weight, at_rest, used)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(weight: jax.Array, at_rest: PartitionSpec, used: PartitionSpec) -> jax.Array:
  """Left alone, the compiler sometimes finds it cheaper to sum activations than to gather a weight."""
  weight = jax.lax.with_sharding_constraint(weight, at_rest)  # and not to round it after the gathering
  return jax.lax.with_sharding_constraint(weight, used)


def _gather_forward(weight, at_rest, used):
  return _gather(weight, at_rest, used), None


def _gather_backward(at_rest, used, _, gradient):
  del used
  return (jax.lax.with_sharding_constraint(gradient, at_rest),)


_gather.defvjp(_gather_forward, _gather_backward)
