"""The mesh of a run, and the sharding of its train state and batches.

The optimiser's moments and the moving average are sharded like their parameter, see parallel/weights.py.
"""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ditsam_jax.errors import UserError
from ditsam_jax.fields import Whole, declared
from ditsam_jax.parallel.activations import AXES, BATCH, DATA, FSDP, TENSOR
from ditsam_jax.parallel.weights import spec_at_rest

MOST_FSDP = 16  # default limit of `fsdp`: over 64 devices, shards of a width of 768 no longer fill a TPU's tiles

_AXIS = Whole(1, 65_536, also=(-1,))


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each axis; -1 stands for the remaining devices; see make_mesh."""

  data: int = declared(-1, _AXIS, 'Data parallelism: devices with different samples and replicated weights')
  fsdp: int = declared(-1, _AXIS, 'Fully sharded data parallelism: devices with different samples and sharded weights')
  tensor: int = declared(1, _AXIS, 'Tensor parallelism: devices that split attention heads and MLP channels')


def make_mesh(config: MeshConfig, devices: list[Any] | np.ndarray | None = None) -> Mesh:
  """Creates the mesh of `config.mesh`: `data`, `fsdp` and `tensor`, one of which may be -1, for the remaining devices.

  If both `data` and `fsdp` are -1, `fsdp` is the largest divisor of the remaining devices up to MOST_FSDP, and `data`
  the rest: sharding weights over more devices adds communication and saves little memory.

  Args:
    config: the config group.
    devices: all devices of the run, by default jax.devices(); the order of an array is kept.

  Raises:
    UserError: sizes are invalid, or their product does not match the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  count = np.size(devices)
  sizes = [getattr(config, axis) for axis in AXES]
  flags = ' '.join(f'--config.mesh.{axis}={size}' for axis, size in zip(AXES, sizes))
  both = sizes[:2] == [-1, -1] and sizes[2] != -1
  if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1 and not both:
    raise UserError(
      f'{flags}: expected whole numbers from 1, and -1 (the rest of the devices) for one, or for data and fsdp'
    )
  fixed = math.prod(size for size in sizes if size != -1)
  if count % fixed or -1 not in sizes and fixed != count:
    raise UserError(
      f'{flags}: needs {fixed} devices, but there are {count}; expected sizes whose product '
      f'{"divides" if -1 in sizes else "is"} {count}'
    )
  rest = count // fixed
  if both:
    sizes[1] = max(size for size in range(1, MOST_FSDP + 1) if rest % size == 0)
    rest //= sizes[1]
  sizes = [rest if size == -1 else size for size in sizes]
  if not isinstance(devices, np.ndarray):
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)
  return Mesh(devices.reshape(sizes), AXES, axis_types=(AxisType.Auto,) * 3)


def check_divides(mesh: Mesh, heads: dict[str, int], batch_size: int, accumulate: int = 1, group: int = 1) -> None:
  """Raises UserError, with suggestions, if the mesh does not divide the batch or the heads of an encoder.

  `group` rows must be on one device: those of which a fixed number has no sentence.
  """
  unit = mesh.shape[DATA] * mesh.shape[FSDP] * accumulate * group
  if batch_size % unit:
    below, above = batch_size // unit * unit, -(-batch_size // unit) * unit
    parts = f'data {mesh.shape[DATA]} x fsdp {mesh.shape[FSDP]}'
    parts += f' x accumulate {accumulate}' if accumulate > 1 else ''
    parts += f' x {group}, for the shares of config.first_prompts' if group > 1 else ''
    raise UserError(
      f'config.data.batch_size is {batch_size}; expected a multiple of {unit} ({parts}), such as '
      f'{" or ".join(str(size) for size in (below, above) if size)}'
    )
  if any(number % mesh.shape[TENSOR] for number in heads.values()):
    common = math.gcd(*heads.values())
    fitting = [size for size in range(1, common + 1) if common % size == 0]
    raise UserError(
      f'config.mesh.tensor is {mesh.shape[TENSOR]}, and the numbers of heads are '
      f'{", ".join(f"{number} ({name})" for name, number in heads.items())}; expected one of '
      f'{", ".join(map(str, fitting))}'
    )


def rows_sharding(mesh: Mesh) -> NamedSharding:
  """The sharding of arrays whose first axis is the batch."""
  return NamedSharding(mesh, PartitionSpec(BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of arrays replicated on all devices."""
  return NamedSharding(mesh, PartitionSpec())


def state_shardings(state: Any, weights: dict[str, Any], mesh: Mesh) -> Any:
  """Shardings of a train state (arrays or shapes): like the weight of the same name and shape, otherwise replicated."""

  def of(path, leaf):
    for key in reversed(path):
      name = getattr(key, 'key', None)
      if name in weights and leaf.shape == weights[name].shape:
        return NamedSharding(mesh, spec_at_rest(name, leaf.shape, mesh.shape))
    return replicated(mesh)

  return jax.tree_util.tree_map_with_path(of, state)


def rows_of_this_host(mesh: Mesh, batch_size: int) -> np.ndarray:
  """Indices of the rows of a global batch that this process must load, int [n], sorted."""
  places = rows_sharding(mesh).addressable_devices_indices_map((batch_size,))
  return np.unique(np.concatenate([np.arange(batch_size)[place] for place in places.values()]))
