"""Lowered programs that do not depend on where the source code is."""

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def without_source_lines() -> Iterator[None]:
  """Keeps the paths and lines of Python files out of programs that are lowered inside, kernels included."""
  before = jax.config.jax_traceback_in_locations_limit  # pyright: ignore[reportAttributeAccessIssue]  # set at run time
  jax.config.update('jax_traceback_in_locations_limit', 0)
  try:
    yield
  finally:
    jax.config.update('jax_traceback_in_locations_limit', before)
