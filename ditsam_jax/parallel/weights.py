"""Sharding of weights: the first pattern that matches a weight's dotted path applies.

At rest, weights are sharded over `fsdp` (and `tensor`). A computation gathers the `fsdp` shards of the weights it uses,
and reduce-scatters their gradients. Axes that do not divide their dimension are ignored.
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
  (r'.*(scale|bias|rel_pos_[hw]|gaussian_matrix|_tokens?|no_mask_embed)', ()),  # small: replicated
)

LOOKED_UP = 'word_embeddings.embedding'


def spec_at_rest(name: str, shape: tuple[int, ...], sizes: dict[str, int]) -> PartitionSpec:
  """The sharding at rest of the weight `name` on a mesh of `sizes`; without a rule, `fsdp` shards the largest axis."""
  for pattern, axes in RULES:
    if re.fullmatch(pattern, name):
      break
  else:
    largest = int(np.argmax(shape)) if shape else 0
    axes = (None,) * largest + (FSDP,)
  return PartitionSpec(*(axis if axis and size % sizes[axis] == 0 else None for axis, size in zip(axes, shape)))


def at_use(weights: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """Gathers weights (by dotted path) for a computation: sharded over `tensor` only. A no-op if no mesh is set.

  The vocabulary stays as it is: the text encoder looks words up in its shards.
  """
  if axis_size(FSDP) == 1:
    return weights
  sizes = {axis: axis_size(axis) for axis in AXES}
  return {
    name: weight if name.endswith(LOOKED_UP) else _gathered(weight, spec_at_rest(name, weight.shape, sizes))
    for name, weight in weights.items()
  }


def _gathered(weight: jax.Array, at_rest: PartitionSpec) -> jax.Array:
  used = PartitionSpec(*(None if axis == FSDP else axis for axis in at_rest))
  return weight if used == at_rest else _gather(weight, at_rest, used)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(weight: jax.Array, at_rest: PartitionSpec, used: PartitionSpec) -> jax.Array:
  """Forces the gather; otherwise the partitioner sometimes sums activations because it estimates that to be cheaper."""
  weight = jax.lax.with_sharding_constraint(weight, at_rest)  # so the weight is cast before it is gathered
  return jax.lax.with_sharding_constraint(weight, used)


def _gather_forward(weight, at_rest, used):
  return _gather(weight, at_rest, used), None


def _gather_backward(at_rest, used, _, gradient):
  del used
  return (jax.lax.with_sharding_constraint(gradient, at_rest),)


_gather.defvjp(_gather_forward, _gather_backward)
