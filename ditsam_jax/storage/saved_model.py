"""Models on disk: a folder with everything needed to rebuild a model.

- `model.json`: config, untrained parts (`fresh`), `assumed` config fields, data set, notes, checksums
- `vocab.txt`: the tokenizer's vocabulary, for models with a text encoder
- `weights/`: Orbax, one array per parameter, named by its dotted path; or the same arrays in `model.safetensors`
- `leftovers/`: the same for tensors that PyTorch's code stores but never uses, in converted models

In a bucket, all but model.json lie in a folder that it names, see `bucket_models`.

A training workdir holds such a folder as `model/`; the workdir's path works too.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ditsam_jax.errors import UserError
from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.models.ditsam import DitSam, abstract_model
from ditsam_jax.models.weights import cast, cast_array, dtype_named, weights_of
from ditsam_jax.storage import arrays, bucket_models, checksums, safetensors_file
from ditsam_jax.storage.bucket import AnyPath, BucketPath
from ditsam_jax.storage.building import build_model
from ditsam_jax.storage.description import (
  FORMAT,
  check_words,
  contents,
  read_config,
  read_description,
)
from ditsam_jax.storage.files import read_json
from ditsam_jax.storage.folders import temporary_folder, written_folder
from ditsam_jax.storage.paths import any_path
from ditsam_jax.storage.vocabulary import fingerprint, read_vocabulary
from ditsam_jax.terminal import printable

SAFETENSORS = 'model.safetensors'
CONTENTS = ('model.json', 'vocab.txt', 'weights', SAFETENSORS, 'leftovers')


def load(name_or_dir: str | os.PathLike, *, dtype: str = 'float32') -> DitSam:
  """Loads a model in eval mode.

  Args:
    name_or_dir: a shipped model's name ('shapes'), a model's folder or a training run's workdir.
    dtype: type of the weights, and so of the computation: 'float32', 'bfloat16', or 'auto': bfloat16 on TPUs and
      GPUs, float32 on CPUs.

  Raises:
    UserError: the model is missing, damaged or not ours, or the type is unknown.
  """
  chosen = dtype_named(dtype, jax.default_backend())
  model = build_model(read_config(name_or_dir), read_weights(name_or_dir), str(name_or_dir))
  cast(model, chosen)
  return model


def size(directory: str | os.PathLike) -> int:
  """Returns the size of a model's folder in bytes."""
  return sum(file.stat().st_size for file in Path(directory).rglob('*') if file.is_file())


def stored_shapes(name_or_dir: str | os.PathLike) -> dict[str, jax.ShapeDtypeStruct]:
  """Reads the shapes and types of all weights, by dotted path. Raises UserError if they are missing or damaged."""
  return arrays.shapes_and_types(_place_of_weights(contents(name_or_dir)))


def read_weights(name_or_dir: str | os.PathLike) -> dict[str, np.ndarray]:
  """Reads all weights by dotted path, in their stored types.

  Raises:
    UserError: the weights are missing, damaged, or do not fit the config; shapes are checked before values are read.
  """
  folder, config = verified(name_or_dir, 'weights'), read_config(name_or_dir)
  model = abstract_model(config)
  stored = arrays.shapes_and_types(folder)
  problems = arrays.differences(stored, weights_of(model)) or [
    f'{name} is {array.dtype}, expected floating-point numbers'
    for name, array in stored.items()
    if not jnp.issubdtype(array.dtype, jnp.floating)
  ]
  arrays.refuse(problems, name_or_dir, 'weights do not fit model.json')
  return arrays.read(folder)


def read_leftovers(name_or_dir: str | os.PathLike) -> dict[str, np.ndarray]:
  """Reads a converted model's leftovers, by the source's names; often empty."""
  folder = verified(name_or_dir, 'leftovers')
  return arrays.read(folder) if folder.exists() else {}


def verified(name_or_dir: str | os.PathLike, part: str) -> Path:
  """Returns the place of weights or leftovers (`part`) after checking checksums. Raises UserError if a file changed."""
  folder = contents(name_or_dir)
  place = _place_of_weights(folder) if part == 'weights' else folder / part
  files = read_description(name_or_dir)['files']
  mine = {name: entry for name, entry in files.items() if name == place.name or name.startswith(f'{place.name}/')}
  checksums.check(folder, mine)
  return place


def _place_of_weights(folder: Path) -> Path:
  """The weights of a model folder: Orbax's folder, or the safetensors file."""
  file = folder / SAFETENSORS
  return file if file.is_file() and not (folder / 'weights').is_dir() else folder / 'weights'


def save(
  directory: str | os.PathLike,
  model: DitSam,
  *,
  vocabulary: AnyPath | None = None,
  data: dict[str, Any] | None = None,
  notes: dict[str, Any] | None = None,
  fresh: Sequence[str] = (),
  assumed: Sequence[str] = (),
  dtype: jax.typing.DTypeLike = jnp.float32,
) -> AnyPath:
  """Writes a model whole or not at all, see `storage/folders.py`; replaces an existing model.

  Args:
    directory: the folder to write.
    model: the model.
    vocabulary: the tokenizer's vocabulary file, for models that take text.
    data: the data set it was trained on, as plain containers.
    notes: anything worth keeping (scores, steps), as plain containers.
    fresh: parts that were never trained, see `parts_of`.
    assumed: config fields that came from a known model instead of from the user or the source.
    dtype: type of the stored weights; f16 halves the size. Positional encodings stay as they are, see `weights.cast`.

  Raises:
    UserError: the folder cannot be written, or weights are NaN or infinite in the stored type.
  """
  dtype = jnp.dtype(dtype)
  weights = {name: cast_array(name, variable[...], dtype) for name, variable in weights_of(model).items()}
  arrays.refuse(arrays.unusable(weights.items()), directory, f'weights stored as {dtype}', 'choose another dtype')
  pieces = None
  if vocabulary is not None:
    pieces = list(read_vocabulary(vocabulary))
    check_words(len(pieces), model.config, vocabulary)
  return write(
    directory, model.config, weights, vocabulary=pieces, data=data, notes=notes, fresh=fresh, assumed=assumed
  )


def write(
  directory: str | os.PathLike,
  config: DitSamConfig,
  weights: dict[str, Any],
  *,
  vocabulary: Sequence[str] | None = None,
  data: dict[str, Any] | None = None,
  notes: dict[str, Any] | None = None,
  fresh: Sequence[str] = (),
  assumed: Sequence[str] = (),
  leftovers: dict[str, Any] | None = None,
  safetensors: bool = False,
) -> AnyPath:
  """Like `save`, for weights by dotted path, each stored in its own type.

  Args:
    directory: see `save`, like the arguments not listed here.
    config: the model's config.
    weights: arrays by dotted path.
    vocabulary: the word pieces, in the order of their ids.
    leftovers: arrays that belong to no parameter, kept for conversion back to their source.
    safetensors: write weights to model.safetensors instead of an Orbax folder.
  """
  directory = any_path(directory).absolute()
  in_bucket = isinstance(directory, BucketPath)
  description: dict[str, Any] = {'format': FORMAT, 'model': config.to_dict()}
  if vocabulary is not None:
    description['vocabulary'] = {'words': len(vocabulary), 'sha256': fingerprint(vocabulary)}
  if in_bucket:
    description['folder'] = bucket_models.new_version()
  description |= {'fresh': list(fresh), 'assumed': list(assumed), 'data': data or {}, 'notes': notes or {}}
  try:
    bucket_models.check_target(directory) if in_bucket else _check_target(directory)
    with temporary_folder() if in_bucket else written_folder(directory, CONTENTS) as folder:
      if vocabulary is not None:
        (folder / 'vocab.txt').write_text('\n'.join(vocabulary) + '\n', encoding='utf-8')
      if safetensors:
        safetensors_file.write(folder / SAFETENSORS, weights)
      else:
        arrays.write(folder / 'weights', weights)
      if leftovers:
        arrays.write(folder / 'leftovers', leftovers)
      description['files'] = checksums.of(folder)
      (folder / 'model.json').write_text(json.dumps(description, indent=1) + '\n', encoding='utf-8')
      if in_bucket:
        bucket_models.publish(folder, directory, description['folder'])
  except (OSError, ValueError) as error:  # ValueError: an invalid folder name
    reason = getattr(error, 'strerror', None) or error
    raise UserError(
      f'the model cannot be written to {printable(directory)}: {reason}; choose another place, or free some space'
    ) from error
  return directory


def _check_target(directory: Path) -> None:
  """Raises UserError unless the path is free, an empty folder or an existing model."""

  def refuse(reason: str):
    raise UserError(f'the model cannot be written to {printable(directory)}: {reason}; choose another place')

  if not directory.name or directory.exists() and not directory.is_dir():
    refuse('this is not a folder name' if not directory.name else 'a file of that name exists')
  if directory.is_dir() and any(directory.iterdir()):
    try:
      if not {'format', 'model', 'data', 'notes'} <= set(read_json(directory / 'model.json')):
        refuse('the folder holds something else')
    except (UserError, TypeError):
      refuse('the folder holds something else')
