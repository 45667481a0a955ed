"""The weights that a run starts from: those of `init_from`, as far as they fit."""

import os
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType

import jax
import numpy as np

from ditsam_jax.errors import UserError
from ditsam_jax.storage import arrays, saved_model
from ditsam_jax.storage.description import read_config
from ditsam_jax.terminal import listed, printable


def read_start(
  name_or_dir: str | os.PathLike,
  expected: Mapping[str, jax.Array | jax.ShapeDtypeStruct],
  grown: Mapping[str, Callable[[np.ndarray], np.ndarray]] = MappingProxyType({}),
) -> dict[str, jax.Array]:
  """Reads those of the expected weights (by dotted path, with shardings) that a saved model has, onto their devices.

  Args:
    name_or_dir: as in `saved_model.load`.
    expected: what the run needs.
    grown: for weights with more rows than the saved ones, a function from the saved array to the new one.

  Raises:
    UserError: see `check_start`; also if files are damaged or values unusable.
  """
  found = check_start(name_or_dir, expected, grown)
  folder = saved_model.verified(name_or_dir, 'weights')
  weights = arrays.read(folder, {name: array for name, array in found.items() if name not in grown})
  if grown:
    stored = arrays.read(folder, names=set(grown))
    for name, grow in grown.items():
      weights[name] = arrays.placed(np.asarray(grow(stored[name].astype(found[name].dtype))), found[name])
  arrays.refuse(arrays.unusable(weights.items()), name_or_dir, 'unusable weights')
  return weights


def check_start(
  name_or_dir: str | os.PathLike,
  expected: Mapping[str, jax.Array | jax.ShapeDtypeStruct],
  grown: Collection[str] = (),
) -> dict[str, jax.Array | jax.ShapeDtypeStruct]:
  """Returns the expected weights that a saved model has; reads no values. Those in `grown` may have fewer rows.

  Raises:
    UserError: the model is missing or damaged, a weight has another shape, or no name matches.
  """
  read_config(name_or_dir)
  stored = saved_model.stored_shapes(name_or_dir)
  start = f"init_from '{printable(name_or_dir)}'"

  def fits(name: str) -> bool:
    there, here = stored[name].shape, expected[name].shape
    return there == here or name in grown and there[1:] == here[1:] and there[0] <= here[0]

  found = {name: array for name, array in expected.items() if name in stored}
  wrong = [f'{name} is {stored[name].shape} there and {found[name].shape} here' for name in found if not fits(name)]
  if wrong or not found:
    raise UserError(
      f'{start} does not fit config.model: {listed(wrong, 4) or "no weight has the same name"}; make their sizes equal'
    )
  return found
