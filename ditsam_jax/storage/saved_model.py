"""Models on disk: a folder that is all one needs to rebuild one.

  model.json   the model's config, what data it was made with, free notes
  vocab.txt    the tokeniser's vocabulary, for models with a text encoder
  weights/     Orbax, one array a parameter, named by its dotted path
  leftovers/   likewise, for converted models: tensors that the PyTorch code carries along and never uses

A training run's workdir holds such a folder as `model/`, and names it as well.
"""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx

from ditsam_jax.errors import UserError
from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.models.ditsam import DitSam
from ditsam_jax.models.weights import cast, dotted, dtype_named, is_weight, weights_of

FORMAT = 1
CONTENTS = ('model.json', 'vocab.txt', 'weights', 'leftovers')
LARGE = 2**28  # bytes of weights from which every array gets a file of its own
SHIPPED = Path(__file__).parents[1] / 'pretrained'


def shipped_names() -> list[str]:
  """Names of the models that come with the library."""
  return sorted(path.parent.name for path in SHIPPED.glob('*/model.json'))


def resolve(name_or_dir: str | os.PathLike) -> Path:
  """The folder of a shipped model's name, of a model's own folder or of a training run's workdir.

  Raises:
    UserError: nothing of that kind is there.
  """
  given = str(name_or_dir)
  try:
    path = Path(given).expanduser()
  except RuntimeError as error:  # ~somebody who is not there
    raise UserError(f'checkpoint {given!r}: {error}') from error
  for candidate in (path, path / 'model'):
    if (candidate / 'model.json').is_file():
      return candidate
  if given in shipped_names():
    return SHIPPED / given
  shipped = ', '.join(shipped_names())
  if not path.exists():
    raise UserError(
      f"checkpoint {given!r} does not exist; give a model's folder, a training run's workdir, or a "
      f'shipped model ({shipped})'
    )
  if (path / 'checkpoints').is_dir():
    raise UserError(
      f'{given!r} is a training run that has not written its model yet; let it finish, or stop it with '
      f'Ctrl-C, and it is written'
    )
  raise UserError(
    f"{given!r} is no ditsam_jax model: it has no model.json; give a model's folder, a training run's "
    f'workdir, or a shipped model ({shipped})'
  )


def read_description(name_or_dir: str | os.PathLike) -> dict[str, Any]:
  """model.json as plain containers: 'model', 'data', 'notes'. Raises UserError where it cannot be read."""
  file = resolve(name_or_dir) / 'model.json'
  try:
    description = json.loads(file.read_text())
    version = description['format']
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(f'{file} is damaged or no ditsam_jax model ({error}); copy the model again') from error
  if version != FORMAT:
    raise UserError(f'{file} has format {version}, this version reads {FORMAT}; use the version that wrote it')
  return description


def read_config(name_or_dir: str | os.PathLike) -> DitSamConfig:
  """The model's config."""
  try:
    return DitSamConfig.from_dict(read_description(name_or_dir)['model'])
  except (ValueError, TypeError, KeyError) as error:
    raise UserError(f'{resolve(name_or_dir) / "model.json"}: {error}') from error


def data_config(name_or_dir: str | os.PathLike) -> dict[str, Any]:
  """What the model was trained on: {'dataset': ..., 'scenes': ...}."""
  return read_description(name_or_dir).get('data', {})


def vocabulary_file(name_or_dir: str | os.PathLike) -> Path:
  """The tokeniser's vocabulary. Raises UserError for a model that takes no text."""
  file = resolve(name_or_dir) / 'vocab.txt'
  if not file.is_file():
    raise UserError(f'{str(name_or_dir)!r} has no vocab.txt: it takes no text; use a text-prompted model (shapes, say)')
  return file


def load(name_or_dir: str | os.PathLike, *, dtype: str = 'float32') -> DitSam:
  """Rebuilds a model, in evaluation mode.

  Args:
    name_or_dir: a shipped model's name ('shapes'), a model's folder or a training run's workdir.
    dtype: of the weights, and with them of what the model computes: 'float32', 'bfloat16', or 'auto': bfloat16 on TPUs
      and GPUs, float32 on CPUs.

  Raises:
    UserError: missing, foreign or damaged; no such type.
  """
  chosen = dtype_named(dtype, jax.default_backend())
  model = build(read_config(name_or_dir), read_weights(name_or_dir), str(name_or_dir))
  cast(model, chosen)
  return model


def build(config: DitSamConfig, weights: dict[str, Any], name: str) -> DitSam:
  """A model of given weights by dotted path, in evaluation mode, in f32.

  Raises:
    UserError: weights that are missing, unknown or of another shape; `name` says whose they are.
  """
  model = check_weights(config, weights, name)
  state = nnx.state(model, is_weight)
  for path, variable in nnx.to_flat_state(state):
    weight = weights[dotted(path)]
    # NumPy converts at once; JAX would compile a conversion for every shape.
    variable.set_value(
      jnp.asarray(weight.astype(np.float32) if isinstance(weight, np.ndarray) else weight, jnp.float32)
    )
  nnx.update(model, state)
  fill_streams(model)
  model.eval()
  return model


def check_weights(config: DitSamConfig, weights: dict[str, Any], name: str) -> DitSam:
  """The abstract model of a config. Raises UserError unless the weights by dotted path are all of it and of its shapes."""
  model = nnx.eval_shape(lambda: DitSam(config, rngs=nnx.Rngs(0)))
  expected = {path: variable.shape for path, variable in weights_of(model).items()}
  problems = [
    f'{path} is {weights[path].shape}, expected {shape}' if path in weights else f'{path} is missing'
    for path, shape in expected.items()
    if path not in weights or weights[path].shape != shape
  ]
  problems += [f'{path} is unknown' for path in weights if path not in expected]
  if problems:
    raise UserError(
      f'{name!r}: weights do not fit model.json: {"; ".join(problems[:5])}'
      f'{f" and {len(problems) - 5} more" if len(problems) > 5 else ""}; copy the model again'
    )
  return model


def size(directory: str | os.PathLike) -> int:
  """Bytes of all files of a model's folder."""
  return sum(file.stat().st_size for file in Path(directory).rglob('*') if file.is_file())


def read_weights(name_or_dir: str | os.PathLike) -> dict[str, np.ndarray]:
  """All weights by dotted path, in the type they are stored in."""
  return _read_arrays(resolve(name_or_dir) / 'weights')


def read_leftovers(name_or_dir: str | os.PathLike) -> dict[str, np.ndarray]:
  """What a converted model carries along for the way back, by the source's names; often nothing."""
  folder = resolve(name_or_dir) / 'leftovers'
  return _read_arrays(folder) if folder.exists() else {}


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
  """Of all stored arrays, by name."""
  import orbax.checkpoint as ocp  # slow to import

  with _explained(folder), ocp.PyTreeCheckpointer() as checkpointer:
    return {
      name: tuple(array.shape) for name, array in checkpointer.metadata(folder.absolute()).item_metadata.tree.items()
    }


def _read_arrays(folder: Path, places: dict[str, jax.ShapeDtypeStruct] | None = None) -> dict[str, Any]:
  """All stored arrays, in NumPy, in their own types; or those in `places`, with the types and shardings given there."""
  import orbax.checkpoint as ocp

  def where(name: str) -> ocp.RestoreArgs:
    if places is None:
      return ocp.RestoreArgs(restore_type=np.ndarray)
    if name not in places:
      return ocp.RestoreArgs(restore_type=None)
    return ocp.ArrayRestoreArgs(sharding=places[name].sharding, dtype=places[name].dtype)

  names = _shapes(folder)
  with _explained(folder), ocp.PyTreeCheckpointer() as checkpointer:
    wanted = {name: ocp.PLACEHOLDER if places and name not in places else 0 for name in names}
    restored = checkpointer.restore(folder.absolute(), item=wanted, restore_args={name: where(name) for name in names})
  return {name: array for name, array in restored.items() if places is None or name in places}


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
  """Orbax and TensorStore raise many kinds for damaged files; makes one of them."""
  try:
    yield
  except Exception as error:
    reason = str(error).strip().split('\n')[0][:200]
    raise UserError(f'{folder} is missing or damaged ({reason}); copy the model again') from error


def _write_arrays(folder: Path, arrays: dict[str, Any]) -> None:
  """Orbax, without copies of the arrays: they may be views of a mapped file that is larger than memory should get."""
  import orbax.checkpoint as ocp
  from orbax.checkpoint import type_handlers

  arrays = {name: np.asarray(array) for name, array in arrays.items()}
  in_place = type_handlers.create_type_handler_registry(
    (np.ndarray, type_handlers.NumpyHandler(deepcopy_host_arrays=False)), (jax.Array, type_handlers.ArrayHandler())
  )
  # OCDBT puts all arrays into a few files, and holds them in memory until it has.
  few_files = sum(array.nbytes for array in arrays.values()) < LARGE
  handler = ocp.PyTreeCheckpointHandler(type_handler_registry=in_place, use_ocdbt=few_files)
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)  # Orbax warns that it does not merge OCDBT files where none are wanted
  try:
    # Of several hosts this one alone writes, and must not wait for the others.
    alone = ocp.options.MultiprocessingOptions(primary_host=jax.process_index(), active_processes={jax.process_index()})
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
      checkpointer.save(folder, arrays)
  except Exception as error:  # TensorStore raises ValueError where the disk is full
    raise OSError(None, str(error).strip().split('\n')[0][:200]) from error
  finally:
    logging.set_verbosity(verbosity)
  _forget_where(folder)


def save(
  directory: str | os.PathLike,
  model: DitSam,
  *,
  vocabulary: Path | None = None,
  data: dict[str, Any] | None = None,
  notes: dict[str, Any] | None = None,
  dtype=jnp.float32,
) -> Path:
  """Writes a model whole or not at all; an earlier one at that place is replaced.

  Args:
    directory: the folder to be.
    model: what to write.
    vocabulary: the tokeniser's file, for models that take text.
    data: what it was trained on, plain containers.
    notes: anything worth keeping (scores, steps), plain containers.
    dtype: type the weights are stored in; f16 halves the size of a shipped model.
  """
  weights = {name: variable[...].astype(dtype) for name, variable in weights_of(model).items()}
  return write(directory, model.config, weights, vocabulary=vocabulary, data=data, notes=notes)


def write(
  directory: str | os.PathLike,
  config: DitSamConfig,
  weights: dict[str, Any],
  *,
  vocabulary: Path | None = None,
  data: dict[str, Any] | None = None,
  notes: dict[str, Any] | None = None,
  leftovers: dict[str, Any] | None = None,
) -> Path:
  """`save` for weights by dotted path, each in the type it is to be stored in; see there.

  Args:
    leftovers: arrays that no parameter holds, kept so that a way back to their source is complete.
  """
  directory = Path(directory).absolute()
  temporary = directory.parent / f'.{directory.name}.writing-{os.getpid()}'
  try:
    _check_target(directory)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    config = dataclasses.replace(config, attention='auto')  # how to compute is no property of the weights
    description = {'format': FORMAT, 'model': config.to_dict(), 'data': data or {}, 'notes': notes or {}}
    (temporary / 'model.json').write_text(json.dumps(description, indent=1) + '\n')
    if vocabulary is not None:
      shutil.copyfile(vocabulary, temporary / 'vocab.txt')
    _write_arrays(temporary / 'weights', weights)
    if leftovers:
      _write_arrays(temporary / 'leftovers', leftovers)
    _replace(temporary, directory)
  except OSError as error:
    raise UserError(
      f'the model cannot be written to {directory}: {error.strerror or error}; choose another place, or make room'
    ) from error
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
  return directory


def read_start(name_or_dir: str | os.PathLike, expected: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
  """Those of the expected weights (by dotted path, with shardings) that a saved model has, each read where it belongs.

  Raises:
    UserError: a weight of the same name has another shape, or nothing fits at all.
  """
  folder = resolve(name_or_dir) / 'weights'
  shapes = _shapes(folder)
  wrong = [
    f'{name} is {shapes[name]} there and {array.shape} here'
    for name, array in expected.items()
    if shapes.get(name, array.shape) != array.shape
  ]
  found = {name: array for name, array in expected.items() if name in shapes}
  if wrong or not found:
    raise UserError(
      f'init_from {str(name_or_dir)!r} does not fit config.model: '
      f'{"; ".join(wrong[:4]) or "no weight has the same name"}; make their sizes equal'
    )
  return _read_arrays(folder, found)


def fill_streams(model: DitSam) -> None:
  """Gives an abstractly built model real random streams (they matter in training mode only)."""
  abstract = nnx.state(model, nnx.RngState)
  for _, variable in nnx.to_flat_state(abstract):
    is_key = jnp.issubdtype(variable.dtype, jax.dtypes.prng_key)
    variable.set_value(jax.random.key(0) if is_key else jnp.zeros(variable.shape, variable.dtype))
  nnx.update(model, abstract)


def _forget_where(weights: Path) -> None:
  """Removes what Orbax notes of the place and the devices of saving: no use to whoever loads, 3 % of a tiny model."""
  for name in ('_sharding', 'commit_success.txt'):
    (weights / name).unlink(missing_ok=True)
  shutil.rmtree(weights / 'array_metadatas', ignore_errors=True)


def _check_target(directory: Path) -> None:
  """Raises UserError unless a model may be put there: nothing, an empty folder or an earlier model."""

  def refuse(reason: str):
    raise UserError(f'the model cannot be written to {directory}: {reason}; choose another place')

  if not directory.name or directory.exists() and not directory.is_dir():
    refuse('this is no name for a folder' if not directory.name else 'a file of that name is there')
  if directory.is_dir() and any(directory.iterdir()):
    try:
      if not {'format', 'model', 'data', 'notes'} <= set(json.loads((directory / 'model.json').read_text())):
        refuse('the folder holds something else')
    except (OSError, ValueError, TypeError):
      refuse('the folder holds something else')


def _replace(new: Path, old: Path) -> None:
  """Renames `new` to `old`; a model there goes, and what else lies in its folder stays."""
  if not old.exists():
    os.replace(new, old)
    return
  retired = old.with_name(f'.{old.name}.retired-{os.getpid()}')
  os.replace(old, retired)
  try:
    os.replace(new, old)
  except BaseException:  # Ctrl-C too: there is always a model
    os.replace(retired, old)
    raise
  for path in retired.iterdir():
    if path.name not in CONTENTS:
      os.replace(path, old / path.name)
  shutil.rmtree(retired, ignore_errors=True)
