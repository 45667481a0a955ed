"""A fingerprint of weights: equal if and, practically, only if every bit of every array is equal."""

import hashlib
from collections.abc import Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils


def weights_sha256(**parts: Mapping[str, jax.Array | np.ndarray]) -> str:
  """SHA-256 over name (part/name), type, shape and bytes (C order) of every array, in the order of the names.

  Arrays may be sharded in any way, which does not change the result; one of them at a time is gathered. Where they
  are spread over hosts, all hosts must call this.
  """
  arrays = {f'{part}/{name}': array for part, named in parts.items() for name, array in named.items()}
  digest = hashlib.sha256()
  for name in sorted(arrays):
    array = _whole(arrays[name])
    digest.update(f'{name} {array.dtype.name} {list(array.shape)}\n'.encode())
    digest.update(array.tobytes())
  return digest.hexdigest()


def _whole(array: jax.Array | np.ndarray) -> np.ndarray:
  if isinstance(array, jax.Array) and not array.is_fully_addressable:
    return multihost_utils.process_allgather(array, tiled=True)
  return np.asarray(array)
