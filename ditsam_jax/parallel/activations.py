"""Sharding of activations, set next to the computation; does nothing if no mesh is set.

The mesh has three axes. `data` and `fsdp` share the rows of a batch, `fsdp` the weights too, and `tensor` the heads of
the attention and the channels between the two layers of an MLP.
"""

import jax
from jax.sharding import PartitionSpec

DATA, FSDP, TENSOR = AXES = ('data', 'fsdp', 'tensor')
BATCH = (DATA, FSDP)


def shard(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
  """x, laid out by mesh axes (one entry a dimension, None for no sharding); x itself where no such mesh is set."""
  if not on_mesh():
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))


def shard_rows(x: jax.Array) -> jax.Array:
  """x [B, ...] with its rows shared out, and all else of a row in one place."""
  return shard(x, BATCH, *[None] * (x.ndim - 1))


def axis_size(axis: str) -> int:
  """Devices along an axis of the mesh that is set; 1 where none is."""
  return jax.sharding.get_abstract_mesh().shape[axis] if on_mesh() else 1


def on_mesh() -> bool:
  """Whether a mesh of these axes is set (`jax.set_mesh`), outside of any shard_map over it."""
  mesh = jax.sharding.get_abstract_mesh()
  return set(AXES) <= set(mesh.axis_names) and not mesh.manual_axes
