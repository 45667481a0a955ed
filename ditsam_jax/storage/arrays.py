"""Reads and writes named arrays with Orbax; detects unusable values."""

import contextlib
import os
import re
import shutil
import stat
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from ditsam_jax.errors import UserError
from ditsam_jax.terminal import printable

LARGE = 2**28  # bytes of weights from which every array gets a file of its own
LARGEST = float(np.sqrt(np.finfo(np.float32).max))  # of a weight: the product of two larger ones is infinite in f32


def shapes_and_types(folder: Path) -> dict[str, jax.ShapeDtypeStruct]:
  """Of all stored arrays, by name; nothing else is read. Raises UserError where they are missing or damaged."""
  import orbax.checkpoint as ocp  # slow to import

  _refuse_special_files(folder)
  with _explained(folder), ocp.PyTreeCheckpointer() as checkpointer:
    tree = checkpointer.metadata(folder.absolute()).item_metadata.tree
    return {name: jax.ShapeDtypeStruct(tuple(array.shape), array.dtype) for name, array in tree.items()}


def read(
  folder: Path,
  places: Mapping[str, jax.Array | jax.ShapeDtypeStruct] | None = None,
  *,
  names: Collection[str] | None = None,
) -> dict[str, Any]:
  """The stored arrays, or those in `names`, in NumPy, in their own types; or `places`, with the types and shardings there.

  Raises:
    UserError: they are missing or damaged.
  """
  import orbax.checkpoint as ocp

  stored = shapes_and_types(folder)
  wanted = set(places if places is not None else stored if names is None else names)

  def where(name: str) -> ocp.RestoreArgs:
    if name not in wanted:
      return ocp.RestoreArgs(restore_type=None)
    if places is None:
      return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(sharding=places[name].sharding, dtype=places[name].dtype)

  with _explained(folder), ocp.PyTreeCheckpointer() as checkpointer:
    item = {name: 0 if name in wanted else ocp.PLACEHOLDER for name in stored}
    restored = checkpointer.restore(folder.absolute(), item=item, restore_args={name: where(name) for name in stored})
  return {name: array for name, array in restored.items() if name in wanted}


def write(folder: Path, arrays: dict[str, Any]) -> None:
  """Writes a new folder without copies of the arrays: they may be views of a mapped file larger than memory should get.

  Raises:
    OSError: whatever went wrong.
  """
  import orbax.checkpoint as ocp
  from orbax.checkpoint import type_handlers

  arrays = {name: np.asarray(array) for name, array in arrays.items()}
  in_place = type_handlers.create_type_handler_registry(
    (np.ndarray, type_handlers.NumpyHandler(deepcopy_host_arrays=False)), (jax.Array, type_handlers.ArrayHandler())
  )
  # OCDBT puts all arrays into a few files, and holds them in memory until it has.
  few_files = sum(array.nbytes for array in arrays.values()) < LARGE
  handler = ocp.PyTreeCheckpointHandler(type_handler_registry=in_place, use_ocdbt=few_files)
  try:
    # Of several hosts this one alone writes, and must not wait for the others.
    alone = ocp.options.MultiprocessingOptions(primary_host=jax.process_index(), active_processes={jax.process_index()})
    with _quiet(), ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
      checkpointer.save(folder, arrays)
  except Exception as error:  # TensorStore raises ValueError where the disk is full
    raise OSError(None, _reason(error)) from error
  _forget_where(folder)


def unusable(arrays: Iterable[tuple[str, Any]]) -> list[str]:
  """A line an array whose values no model can compute with: NaN, infinite, or so large that f32 overflows at once."""
  problems = []
  for name, array in arrays:
    for values in _on_this_host(array):
      problem = _problem(values)
      if problem:
        problems.append(f'{printable(name)} {problem}')
        break
  return problems


def _problem(values: np.ndarray) -> str:
  if values.dtype.kind in 'biu' or not values.size:
    return ''
  with np.errstate(all='ignore'):
    if values.dtype.itemsize < 4:  # NumPy is slow in these
      values = values.astype(np.float32)
    low, high = float(values.min()), float(values.max())
    if -LARGEST <= low and high <= LARGEST:  # not so for NaN
      return ''
    bad = values.size - int(np.isfinite(values).sum())
  if bad:
    return f'holds {bad:,} of {values.size:,} values that are NaN or infinite'
  return f'holds {high if high > -low else low:.1e}, which overflows where f32 computes with it'


def _on_this_host(array: Any) -> Iterable[np.ndarray]:
  """The parts of an array that this host holds, each once."""
  if isinstance(array, jax.Array):
    parts = {str(shard.index): shard.data for shard in array.addressable_shards}
    return map(np.asarray, parts.values())
  return [np.asarray(array)]


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
  """A line an array that is missing, unknown or of another shape."""
  problems = [
    f'{name} is {tuple(found[name].shape)}, expected {tuple(array.shape)}' if name in found else f'{name} is missing'
    for name, array in expected.items()
    if name not in found or tuple(found[name].shape) != tuple(array.shape)
  ]
  return problems + [f'{printable(name)} is unknown' for name in found if name not in expected]


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
  """Orbax and TensorStore raise many kinds for damaged files; makes one of them."""
  try:
    with _quiet():
      yield
  except Exception as error:
    raise UserError(f'{printable(folder)} is missing or damaged ({_reason(error)}); copy the model again') from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Nothing of Orbax's and TensorStore's own on stderr: what fails is raised as well, and then said in one line."""
  verbosity, sys.unraisablehook = logging.get_verbosity(), _without_closed_loops(sys.unraisablehook)
  logging.set_verbosity(logging.FATAL)
  try:
    yield
  finally:
    logging.set_verbosity(verbosity)


def _without_closed_loops(hook: Callable) -> Callable:
  """`hook`, not called for what TensorStore's threads tell an event loop that has ended with an error.

  They do so long after that error was raised, so this stays.
  """
  if getattr(hook, 'passes_closed_loops', None) is False:
    return hook

  def filtered(unraisable) -> None:
    if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == 'Event loop is closed'):
      hook(unraisable)

  filtered.passes_closed_loops = False  # pyright: ignore[reportFunctionMemberAccess]
  return filtered


def _reason(error: Exception) -> str:
  """One line; TensorStore buries the system's error in several."""
  code = re.search(r"os_error_code='(\d+)'", str(error))
  if code:
    return os.strerror(int(code[1]))
  lines = str(error).strip().split('\n')
  return printable(lines[0] or type(error).__name__)


def _refuse_special_files(folder: Path) -> None:
  """Raises UserError for a pipe or a device among the files, which would be waited for."""
  for place, folders, files in os.walk(folder):
    for name in files:
      path = Path(place, name)
      try:
        regular = stat.S_ISREG(path.stat().st_mode)
      except OSError:  # a link to nothing: missing
        continue
      if not regular:
        raise UserError(f'{printable(path)}: a device or a pipe, expected a file; copy the model again')


def _forget_where(folder: Path) -> None:
  """Removes Orbax's record of the path and devices of saving: not needed for loading, and 3 % of a tiny model."""
  for name in ('_sharding', 'commit_success.txt'):
    (folder / name).unlink(missing_ok=True)
  shutil.rmtree(folder / 'array_metadatas', ignore_errors=True)
