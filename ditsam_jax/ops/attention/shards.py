"""Attention under a mesh: each device computes its own part of the batch and of the heads."""

import math
from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec

from ditsam_jax.parallel.activations import BATCH, TENSOR


def per_shard(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """`function(q, k, v, queries, keys)` on what each device of the current mesh holds.

  The compiler cannot cut a kernel or a loop over heads, it would gather whole arrays on every device. An axis of the
  mesh that does not divide batch or heads is left out: its devices then compute the same.
  """

  def run(q, k, v, queries, keys):
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:  # in a shard_map already, arrays are a device's own
      return function(q, k, v, queries, keys)
    batch, heads = (
      _dividing(axes, dict(mesh.shape), size) for axes, size in ((BATCH, q.shape[0]), ((TENSOR,), q.shape[1]))
    )
    own = PartitionSpec(batch, heads)
    specs = (own, own, own, own, PartitionSpec())
    return jax.shard_map(function, in_specs=specs, out_specs=own, check_vma=False)(q, k, v, queries, keys)

  return run


def _dividing(axes: tuple[str, ...], sizes: dict[str, int], size: int) -> tuple[str, ...]:
  """The first axes that the mesh has and whose product divides `size`."""
  axes = tuple(axis for axis in axes if axis in sizes)
  while size % math.prod(sizes[axis] for axis in axes):
    axes = axes[:-1]
  return axes
