"""A model's weights by name."""

import functools
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from ditsam_jax.errors import UserError
from ditsam_jax.parallel.activations import FSDP, axis_size
from ditsam_jax.parallel.weights import at_use

DTYPES = ('auto', 'float32', 'bfloat16')

Weights = dict[str, jax.Array]  # by dotted path; plain dictionaries dispatch faster than NNX states
M = TypeVar('M', bound=nnx.Module)


class Structure(Generic[M]):
  """A module without its weights; `structure.module(weights)` recombines them.

  It contains no arrays except for random streams. Structures of modules with the same layout are equal, so they share
  compiled programs.
  """

  def __init__(self, module: M):
    self._graph, weights, self._streams = nnx.split(module, is_weight, ...)
    self._variables = {
      dotted(path): (path, variable.replace(jax.ShapeDtypeStruct(variable.shape, variable.dtype)))
      for path, variable in nnx.to_flat_state(weights)
    }
    self.parameters = {name for name, (_, variable) in self._variables.items() if isinstance(variable, nnx.Param)}

  def module(self, *weights: Weights) -> M:
    """Returns the module with these weights, which must be complete, in its original mode."""
    merged = {name: array for part in weights for name, array in part.items()}
    state = nnx.from_flat_state(
      [(path, variable.replace(merged[name])) for name, (path, variable) in self._variables.items()]
    )
    return nnx.merge(self._graph, state, self._streams)

  def __eq__(self, other: object) -> bool:
    return self is other or isinstance(other, Structure) and self._graph == other._graph

  def __hash__(self) -> int:
    return self._hash

  @functools.cached_property
  def _hash(self) -> int:  # cached, because it takes longer than a small model's forward pass
    return hash(self._graph)


def weights_of(model: nnx.Module) -> dict[str, nnx.Variable]:
  """Returns parameters and buffers by dotted path."""
  return {dotted(path): variable for path, variable in nnx.to_flat_state(nnx.state(model, is_weight))}


def cast(model: nnx.Module, dtype: jnp.dtype) -> None:
  """Casts the weights, and so the computation. Positional encodings stay f32, because rounding would move coordinates.

  LayerNorms, softmax and outputs are always f32.
  """
  for name, variable in weights_of(model).items():
    variable.set_value(cast_array(name, variable[...], dtype))


def dtype_named(name: str | jnp.dtype, platform: str) -> jnp.dtype:
  """Returns a type by name; 'auto' is bf16 on TPUs and GPUs, where it is several times faster, and f32 on CPUs.

  Raises:
    UserError: the name is not one of DTYPES.
  """
  if name == 'auto':
    return jnp.dtype(jnp.float32 if platform == 'cpu' else jnp.bfloat16)
  try:
    dtype = jnp.dtype(name)
  except TypeError:
    dtype = None
  if dtype is None or dtype.name not in DTYPES:
    raise UserError(f'dtype {name!r}: expected one of {", ".join(DTYPES)}')
  return dtype


def cast_array(name: str, array: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """Casts the weight `name` to a model's compute type, see `cast`."""
  return array if is_position(name) or array.dtype == dtype else array.astype(dtype)


def is_position(name: str) -> bool:
  """Whether a weight encodes coordinates, which rounding would move."""
  return name.endswith('gaussian_matrix')


def dotted(path: tuple) -> str:
  """('a', 0, 'kernel') -> 'a.0.kernel'."""
  return '.'.join(map(str, path))


def is_weight(path: tuple, value: Any) -> bool:
  """An NNX filter for the content of checkpoints: parameters and buffers, but not random streams."""
  del path
  return isinstance(value, nnx.Variable) and not isinstance(value, nnx.RngState)


def module_at_use(module: M, path: str) -> M:
  """Returns a copy of a module with gathered weights; `path` is its dotted path in the full model."""
  if axis_size(FSDP) == 1:
    return module
  graph, state, rest = nnx.split(module, is_weight, ...)
  variables = {f'{path}.{dotted(key)}': (key, variable) for key, variable in nnx.to_flat_state(state)}
  weights = at_use({name: variable[...] for name, (_, variable) in variables.items()})
  state = nnx.from_flat_state([(key, variable.replace(weights[name])) for name, (key, variable) in variables.items()])
  return nnx.merge(graph, state, rest)
