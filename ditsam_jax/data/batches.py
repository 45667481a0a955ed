"""Stacks rows into batches."""

from collections.abc import Mapping, Sequence

import numpy as np

from ditsam_jax.errors import UserError
from ditsam_jax.geometry.letterbox import Unplaced
from ditsam_jax.limits import MAX_THREADS

Batch = dict[str, np.ndarray]
Sample = dict[str, np.ndarray | Unplaced]  # a row of a future batch


def stack(rows: Sequence[Mapping[str, np.ndarray | Unplaced]]) -> Batch:
  """Stacks rows with the same names; images are placed in their squares."""
  return {name: _stacked([row[name] for row in rows]) for name in rows[0]}


def _stacked(values: list[np.ndarray | Unplaced]) -> np.ndarray:
  unplaced = [value for value in values if isinstance(value, Unplaced)]
  if not unplaced:
    return np.stack([value for value in values if not isinstance(value, Unplaced)])
  squares = np.zeros((len(unplaced), unplaced[0].size, unplaced[0].size, 3), np.float32)
  for value, square in zip(unplaced, squares):
    value.place(square)
  return squares


def check_threads(threads: int, least: int) -> None:
  """Raises UserError unless `least` <= threads <= MAX_THREADS."""
  if not least <= threads <= MAX_THREADS:
    raise UserError(f'threads={threads}: expected {least} to {MAX_THREADS}; more than the number of cores is no faster')
