"""A fingerprint of weights, equal (for practical purposes) if and only if all arrays are bit-identical."""

import hashlib
from collections.abc import Mapping

import jax
import numpy as np

from ditsam_jax.parallel.distributed import gathered_array


def weights_sha256(**parts: Mapping[str, jax.Array | np.ndarray]) -> str:
  """SHA-256 over the name (part/name), type, shape and bytes (C order) of all arrays, sorted by name.

  The result does not depend on sharding; arrays are gathered one at a time. If they are sharded over hosts, all hosts
  must call this.
  """
  arrays = {f'{part}/{name}': array for part, named in parts.items() for name, array in named.items()}
  digest = hashlib.sha256()
  for name in sorted(arrays):
    array = gathered_array(arrays[name])
    digest.update(f'{name} {array.dtype.name} {list(array.shape)}\n'.encode())
    digest.update(array.tobytes())
  return digest.hexdigest()
