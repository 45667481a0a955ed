"""What an export prints: differences and sizes."""

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ditsam_jax.errors import UserError
from ditsam_jax.exporting.reference import TOLERANCE
from ditsam_jax.terminal import printable


def worst(cases: Iterable[dict[str, float]]) -> dict[str, float]:
  """The largest difference of every output over all cases, which may lack outputs."""
  found: dict[str, float] = {}
  for differences in cases:
    for name, value in differences.items():
      found[name] = float(np.maximum(found.get(name, 0.0), value))  # unlike Python's max, keeps NaN
  return found


def checked(largest: dict[str, float], ours: str, theirs: str = 'JAX', tolerance: float = TOLERANCE) -> str:
  """Describes the largest differences of `ours` from `theirs`, by output.

  Raises:
    UserError: one is beyond `tolerance`, or NaN.
  """
  if not all(value <= tolerance for value in largest.values()):  # also catches NaN
    name = max(largest, key=lambda name: math.inf if math.isnan(largest[name]) else largest[name])
    raise UserError(
      f'{name} of {ours} differs from {theirs} by {largest[name]:.1e} of its largest value, more than {tolerance:.0e}; '
      f'nothing was written; please report this with your model.json'
    )
  return f'largest differences of {ours} from {theirs}, relative to the largest value:\n{table(largest)}'


def table(largest: dict[str, float]) -> str:
  """A line per output."""
  return '\n'.join(f'  {name:16} {value:.1e}' for name, value in sorted(largest.items()))


def sizes(folder: Path) -> list[str]:
  """A line per file of a folder, and one for all of it."""
  files = {file.name: file.stat().st_size for file in sorted(folder.iterdir()) if file.is_file()}
  width = max(map(len, files))
  lines = [f'  {name:{width}} {size / 1e6:9.3f} MB' for name, size in files.items()]
  return [*lines, f'{printable(folder)}: {sum(files.values()) / 1e6:.2f} MB']
