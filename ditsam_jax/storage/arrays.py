"""Reads and writes named arrays with Orbax, or reads them from a safetensors file; detects unusable values."""

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
from ditsam_jax.parallel import distributed
from ditsam_jax.storage import safetensors_file
from ditsam_jax.terminal import listed, printable

LARGE = 2**28  # bytes of weights from which each array is written to its own file
LARGEST = float(np.sqrt(np.finfo(np.float32).max))  # magnitude of a weight: products of two larger ones overflow f32


def shapes_and_types(folder: Path) -> dict[str, jax.ShapeDtypeStruct]:
  """Reads the shapes and types of all stored arrays, by name. Raises UserError if they are missing or damaged."""
  if folder.is_file():
    return safetensors_file.shapes_and_types(folder)
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
  """Reads all stored arrays, or `names`, into NumPy in their own types; or `places`, in its types and shardings.

  Raises:
    UserError: arrays are missing or damaged.
  """
  stored = shapes_and_types(folder)
  wanted = set(places if places is not None else stored if names is None else names)
  if folder.is_file():
    found = safetensors_file.read(folder, wanted)
    return found if places is None else {name: placed(array, places[name]) for name, array in found.items()}
  import orbax.checkpoint as ocp

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


def placed(array: np.ndarray, place: jax.Array | jax.ShapeDtypeStruct) -> jax.Array:
  """Returns an array of any shape with the type and sharding of `place`."""
  array = array.astype(place.dtype)
  return jax.make_array_from_callback(array.shape, place.sharding, array.__getitem__)


def write(folder: Path, arrays: dict[str, Any]) -> None:
  """Writes a new folder without copying arrays, which may be views of a memory-mapped file larger than memory.

  Raises:
    OSError: writing failed, for any reason.
  """
  import orbax.checkpoint as ocp
  from orbax.checkpoint import type_handlers

  arrays = {name: np.asarray(array) for name, array in arrays.items()}
  in_place = type_handlers.create_type_handler_registry(
    (np.ndarray, type_handlers.NumpyHandler(deepcopy_host_arrays=False)), (jax.Array, type_handlers.ArrayHandler())
  )
  # OCDBT packs all arrays into a few files, and keeps them in memory until they are written.
  few_files = sum(array.nbytes for array in arrays.values()) < LARGE
  handler = ocp.PyTreeCheckpointHandler(type_handler_registry=in_place, use_ocdbt=few_files)
  try:
    # Only this host writes; without this option, Orbax would wait for the others.
    here, _ = distributed.place()
    alone = ocp.options.MultiprocessingOptions(primary_host=here, active_processes={here})
    with _quiet(), ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
      checkpointer.save(folder, arrays)
  except Exception as error:  # TensorStore raises ValueError if the disk is full
    raise OSError(None, _reason(error)) from error
  _remove_provenance(folder)


def unusable(arrays: Iterable[tuple[str, Any]]) -> list[str]:
  """Describes each array with unusable values (NaN, infinite, or so large that f32 overflows) in a line."""
  problems = []
  for name, array in arrays:
    for values in _local_shards(array):
      problem = _unusable_values(values)
      if problem:
        problems.append(f'{printable(name)} {problem}')
        break
  return problems


def _unusable_values(values: np.ndarray) -> str:
  if values.dtype.kind in 'biu' or not values.size:
    return ''
  with np.errstate(all='ignore'):
    if values.dtype.itemsize < 4:  # NumPy is slow with these types
      values = values.astype(np.float32)
    low, high = float(values.min()), float(values.max())
    if -LARGEST <= low and high <= LARGEST:  # false for NaN
      return ''
    bad = values.size - int(np.isfinite(values).sum())
  if bad:
    return f'holds {bad:,} of {values.size:,} values that are NaN or infinite'
  return f'holds {high if high > -low else low:.1e}, which overflows in f32 arithmetic'


def _local_shards(array: Any) -> Iterable[np.ndarray]:
  """The shards of an array on this host, without duplicates."""
  if isinstance(array, jax.Array):
    parts = {str(shard.index): shard.data for shard in array.addressable_shards}
    return map(np.asarray, parts.values())
  return [np.asarray(array)]


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
  """Describes each array that is missing, unknown or of another shape in a line."""
  problems = [
    f'{name} is {tuple(found[name].shape)}, expected {tuple(array.shape)}' if name in found else f'{name} is missing'
    for name, array in expected.items()
    if name not in found or tuple(found[name].shape) != tuple(array.shape)
  ]
  return problems + [f'{printable(name)} is unknown' for name in found if name not in expected]


def refuse(problems: list[str], name: str | os.PathLike, what: str, advice: str = 'copy the model again') -> None:
  """Raises UserError with the first problems of the arrays of a model, if there are any."""
  if problems:
    raise UserError(f"'{printable(name)}': {what}: {listed(problems)}; {advice}")


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
  """Turns the many exceptions that Orbax and TensorStore raise for damaged files into UserError."""
  try:
    with _quiet():
      yield
  except MemoryError:
    raise
  except Exception as error:
    raise UserError(f'{printable(folder)} is missing or damaged ({_reason(error)}); copy the model again') from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Silences Orbax's and TensorStore's messages on stderr; failures are also raised, and reported in one line."""
  verbosity, sys.unraisablehook = logging.get_verbosity(), _ignoring_closed_loops(sys.unraisablehook)
  logging.set_verbosity(logging.FATAL)
  try:
    yield
  finally:
    logging.set_verbosity(verbosity)


def _ignoring_closed_loops(hook: Callable) -> Callable:
  """Wraps `hook` to ignore TensorStore's threads that report to a closed event loop after an error.

  They do so long after the error was raised, so the hook stays installed.
  """
  if getattr(hook, 'passes_closed_loops', None) is False:
    return hook

  def filtered(unraisable) -> None:
    if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == 'Event loop is closed'):
      hook(unraisable)

  filtered.passes_closed_loops = False  # pyright: ignore[reportFunctionMemberAccess]
  return filtered


def _reason(error: Exception) -> str:
  """The error in one line; TensorStore buries the system's error in several lines."""
  code = re.search(r"os_error_code='(\d+)'", str(error))
  if code:
    return os.strerror(int(code[1]))
  lines = str(error).strip().split('\n')
  return printable(lines[0] or type(error).__name__)


def _refuse_special_files(folder: Path) -> None:
  """Raises UserError for a pipe or a device among the files, on which reading would block."""
  for place, folders, files in os.walk(folder):
    for name in files:
      path = Path(place, name)
      try:
        regular = stat.S_ISREG(path.stat().st_mode)
      except OSError:  # a broken link, reported later as missing
        continue
      if not regular:
        raise UserError(f'{printable(path)}: a device or a pipe, expected a file; copy the model again')


def _remove_provenance(folder: Path) -> None:
  """Removes Orbax's record of the path and devices of saving, which loading does not need (3 % of a tiny model)."""
  for name in ('_sharding', 'commit_success.txt'):
    (folder / name).unlink(missing_ok=True)
  shutil.rmtree(folder / 'array_metadatas', ignore_errors=True)
