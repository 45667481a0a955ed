"""Attention under a mesh: each device computes its own shard of the batch and heads."""

import math
from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec

from ditsam_jax.parallel.activations import BATCH, TENSOR


def per_shard(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """Maps `function(q, k, v, queries, keys)` over the shards of the current mesh.

  The partitioner cannot split a kernel or a loop over heads; it would gather the full arrays on every device. Mesh axes
  that do not divide the batch or the heads are skipped; their devices repeat the same computation.
  """

  def run(q, k, v, queries, keys):
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:  # inside a shard_map, arrays are already per device
      return function(q, k, v, queries, keys)
    batch, heads = (
      _dividing(axes, dict(mesh.shape), size) for axes, size in ((BATCH, q.shape[0]), ((TENSOR,), q.shape[1]))
    )
    own = PartitionSpec(batch, heads)
    specs = (own, own, own, own, PartitionSpec())
    return jax.shard_map(function, in_specs=specs, out_specs=own, check_vma=False)(q, k, v, queries, keys)

  return run


def _dividing(axes: tuple[str, ...], sizes: dict[str, int], size: int) -> tuple[str, ...]:
  """The longest prefix of `axes`, restricted to the mesh's, whose product divides `size`."""
  axes = tuple(axis for axis in axes if axis in sizes)
  while size % math.prod(sizes[axis] for axis in axes):
    axes = axes[:-1]
  return axes
