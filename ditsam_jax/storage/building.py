"""Models from a config and weights by name, checked."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.models.ditsam import DitSam, abstract_model
from ditsam_jax.models.weights import dotted, is_weight, weights_of
from ditsam_jax.storage import arrays


def build_model(config: DitSamConfig, weights: dict[str, Any], name: str) -> DitSam:
  """Builds a model in eval mode, in f32, from weights by dotted path.

  Raises:
    UserError: weights are missing, unknown, unusable or of another shape; the message starts with `name`.
  """
  model = check_weights(config, weights, name)
  state = nnx.state(model, is_weight)
  for path, variable in nnx.to_flat_state(state):
    weight = weights[dotted(path)]
    # NumPy converts without compiling; JAX would compile a conversion for each shape.
    variable.set_value(
      jnp.asarray(weight.astype(np.float32) if isinstance(weight, np.ndarray) else weight, jnp.float32)
    )
  nnx.update(model, state)
  model.eval()
  return model


def check_weights(config: DitSamConfig, weights: dict[str, Any], name: str) -> DitSam:
  """Checks weights, by dotted path, against a config; returns the abstract model.

  Raises:
    UserError: weights are missing, unknown, unusable or of another shape.
  """
  model = abstract_model(config)
  arrays.refuse(arrays.differences(weights, weights_of(model)), name, 'weights do not fit model.json')
  arrays.refuse(arrays.unusable(weights.items()), name, 'unusable weights')
  return model
