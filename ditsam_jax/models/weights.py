"""Weights of a model by name."""

from typing import Any

from flax import nnx
import jax.numpy as jnp


def weights_of(model: nnx.Module) -> dict[str, nnx.Variable]:
  """Parameters and buffers by dotted path."""
  return {dotted(path): variable for path, variable in nnx.to_flat_state(nnx.state(model, is_weight))}


def cast(model: nnx.Module, dtype: jnp.dtype) -> None:
  """Rounds the weights, and with them what the model computes in; positions stay f32, they would lose their meaning.

  LayerNorms, softmax and the outputs are f32 whatever the weights are.
  """
  for name, variable in weights_of(model).items():
    if not is_position(name):
      variable.set_value(variable[...].astype(dtype))


def is_position(name: str) -> bool:
  """Whether a weight turns coordinates into an encoding: rounded, it would move them."""
  return name.endswith('gaussian_matrix')


def dotted(path: tuple) -> str:
  """('a', 0, 'kernel') -> 'a.0.kernel'."""
  return '.'.join(map(str, path))


def is_weight(path: tuple, value: Any) -> bool:
  """An NNX filter: what belongs into a checkpoint (parameters, buffers), not the random streams."""
  del path
  return isinstance(value, nnx.Variable) and not isinstance(value, nnx.RngState)
