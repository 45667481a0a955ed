"""Weights of a model by name."""

from typing import Any

from flax import nnx


def weights_of(model: nnx.Module) -> dict[str, nnx.Variable]:
  """Parameters and buffers by dotted path."""
  return {dotted(path): variable for path, variable in nnx.to_flat_state(nnx.state(model, is_weight))}


def dotted(path: tuple) -> str:
  """('a', 0, 'kernel') -> 'a.0.kernel'."""
  return '.'.join(map(str, path))


def is_weight(path: tuple, value: Any) -> bool:
  """An NNX filter: what belongs into a checkpoint (parameters, buffers), not the random streams."""
  del path
  return isinstance(value, nnx.Variable) and not isinstance(value, nnx.RngState)
