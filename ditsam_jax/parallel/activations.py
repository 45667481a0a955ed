"""Sharding constraints on activations, placed next to the computation; no-ops if no mesh is set.

The mesh has three axes. `data` and `fsdp` shard the rows of a batch, `fsdp` also the weights, and `tensor` the
attention heads and the hidden channels of MLPs.
"""

import jax
from jax.sharding import PartitionSpec

DATA, FSDP, TENSOR = AXES = ('data', 'fsdp', 'tensor')
BATCH = (DATA, FSDP)


def shard(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
  """Constrains the sharding of x to mesh axes, one per dimension (None: unsharded); returns x if no mesh is set."""
  if not on_mesh():
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))


def shard_rows(x: jax.Array) -> jax.Array:
  """Shards the rows of x [B, ...]; each row stays on one device."""
  return shard(x, BATCH, *[None] * (x.ndim - 1))


def axis_size(axis: str) -> int:
  """Number of devices along a mesh axis; 1 if no mesh is set."""
  return jax.sharding.get_abstract_mesh().shape[axis] if on_mesh() else 1


def on_mesh() -> bool:
  """Whether a mesh with these axes is set (`jax.set_mesh`), outside any shard_map over it."""
  mesh = jax.sharding.get_abstract_mesh()
  return set(AXES) <= set(mesh.axis_names) and not mesh.manual_axes
