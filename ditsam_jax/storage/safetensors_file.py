"""Named arrays in one safetensors file, an alternative to Orbax that other programs read."""

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ditsam_jax.errors import UserError
from ditsam_jax.terminal import printable

_TYPES = {'F64': 'float64', 'F32': 'float32', 'F16': 'float16', 'BF16': 'bfloat16'}


def shapes_and_types(path: Path) -> dict[str, jax.ShapeDtypeStruct]:
  """Reads the shapes and types of all arrays, by name. Raises UserError if the file is damaged or holds other types."""
  with _opened(path) as file:
    found = {name: file.get_slice(name) for name in file.keys()}
    strange = {piece.get_dtype() for piece in found.values()} - _TYPES.keys()
    if strange:
      raise UserError(f'{printable(path)} holds {", ".join(sorted(strange))}; expected one of {", ".join(_TYPES)}')
    return {
      name: jax.ShapeDtypeStruct(tuple(piece.get_shape()), jnp.dtype(_TYPES[piece.get_dtype()]))
      for name, piece in found.items()
    }


def metadata(path: Path) -> dict[str, str]:
  """Reads the metadata. Raises UserError if the file is damaged."""
  with _opened(path) as file:
    return file.metadata() or {}


def read(path: Path, names: Collection[str]) -> dict[str, np.ndarray]:
  """Reads arrays by name, in their own types. Raises UserError if the file is damaged."""
  with _opened(path) as file:
    return {name: file.get_tensor(name) for name in names}


def write(path: Path, arrays: Mapping[str, Any]) -> None:
  """Writes a new file, with names in alphabetical order. Raises OSError."""
  from safetensors.numpy import save_file

  # Other programs tell by `format` in which framework's layout the arrays are.
  save_file({name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}, path, {'format': 'flax'})
  os.chmod(path, 0o666 & ~_umask())  # safetensors writes files that only their owner can read


def _umask() -> int:
  mask = os.umask(0)
  os.umask(mask)
  return mask


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
  try:
    from safetensors import SafetensorError, safe_open
  except ModuleNotFoundError as error:
    raise UserError(
      f"{printable(path)} needs safetensors; install the extra 'hub': pip install 'ditsam_jax[hub]'"
    ) from error
  try:
    with safe_open(path, framework='np') as file:
      yield file
  except (SafetensorError, OSError) as error:
    raise UserError(
      f'{printable(path)} is truncated or not a safetensors file ({printable(error)}); copy the model again'
    ) from error
