"""Models on disk: a folder that is all one needs to rebuild one.

  model.json   the model's config; what of it is fresh or assumed; what data it was made with; free notes
  vocab.txt    the tokeniser's vocabulary, for models with a text encoder
  weights/     Orbax, one array a parameter, named by its dotted path
  leftovers/   likewise, for converted models: tensors that the PyTorch code carries along and never uses

A training run's workdir holds such a folder as `model/`, and names it as well.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ditsam_jax.errors import UserError
from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.models.ditsam import DitSam
from ditsam_jax.models.weights import dotted, is_weight, weights_of
from ditsam_jax.storage import arrays
from ditsam_jax.storage.files import read_json
from ditsam_jax.storage.places import resolve
from ditsam_jax.terminal import listed, printable, say
from ditsam_jax.vocabulary import fingerprint, read_vocabulary

FORMAT = 1
CONTENTS = ('model.json', 'vocab.txt', 'weights', 'leftovers')
_FIELDS = {'model': dict, 'data': dict, 'notes': dict, 'fresh': list, 'assumed': list, 'vocabulary': dict}


def read_description(name_or_dir: str | os.PathLike) -> dict[str, Any]:
  """model.json as plain containers.

  Returns:
    'model', 'data', 'notes'; 'fresh' and 'assumed', lists of names; 'vocabulary', its number of words and their
    fingerprint, {} where it has none.

  Raises:
    UserError: it cannot be read, or is no model's.
  """
  file = resolve(name_or_dir) / 'model.json'
  content = read_json(file)
  if not isinstance(content, dict) or 'format' not in content or 'model' not in content:
    raise UserError(
      f'{printable(file)} is damaged or no ditsam_jax model (no format and model in it); copy the model again'
    )
  if type(content['format']) is not int or content['format'] != FORMAT:
    raise UserError(
      f'{printable(file)} has format {printable(content["format"])}, this version reads {FORMAT}; '
      f'use the version that wrote it'
    )
  description = {name: kind() for name, kind in _FIELDS.items()} | content
  for name, kind in _FIELDS.items():
    if not isinstance(description[name], kind):
      raise UserError(
        f'{printable(file)}: {name} is {printable(json.dumps(description[name]))}, '
        f'expected {"a list" if kind is list else "fields by name"}; copy the model again'
      )
  return description


def read_config(name_or_dir: str | os.PathLike) -> DitSamConfig:
  """The model's config."""
  fields = read_description(name_or_dir)['model']
  try:
    return DitSamConfig.from_dict(fields)
  except (ValueError, TypeError, KeyError, OverflowError, UserError) as error:
    raise UserError(f'{printable(resolve(name_or_dir) / "model.json")}: {printable(error, 500)}') from error


def data_config(name_or_dir: str | os.PathLike) -> dict[str, Any]:
  """What the model was trained on: {'dataset': ..., 'scenes': ...}."""
  return read_description(name_or_dir)['data']


def fresh_parts(name_or_dir: str | os.PathLike) -> list[str]:
  """Parts of the model that hold initial values and were never trained: ['image_encoder.instruction', 'text_proj']."""
  return [str(part) for part in read_description(name_or_dir)['fresh']]


def warn_if_fresh(name_or_dir: str | os.PathLike) -> None:
  """One line on stderr for a model with parts that were never trained."""
  parts = fresh_parts(name_or_dir)
  if parts:
    say(
      f'warning: {printable(name_or_dir)}: {listed(parts)} {"is" if len(parts) == 1 else "are"} untrained; '
      f'expect meaningless masks until it is trained (--config.init_from of ditsam_jax.train)'
    )


def parts_of(names: Iterable[str]) -> list[str]:
  """The parts of a model that some parameters, by dotted path, belong to: as of `fresh_parts`, sorted."""
  return sorted({'.'.join(name.split('.')[: 2 if name.startswith('image_encoder') else 1]) for name in names})


def vocabulary_file(name_or_dir: str | os.PathLike) -> Path:
  """The tokeniser's vocabulary: vocab.txt, or Hugging Face's tokenizer.json where that is missing.

  Raises:
    UserError: the model takes no text; there is no vocabulary, or another model's.
  """
  name, folder, config = f"'{printable(name_or_dir)}'", resolve(name_or_dir), read_config(name_or_dir)
  if config.text_encoder is None:
    raise UserError(f'{name} has no vocab.txt: it takes no text; use a text-prompted model (shapes, say)')
  file = next((file for file in (folder / 'vocab.txt', folder / 'tokenizer.json') if file.exists()), None)
  if file is None:
    raise UserError(f'{name} has no vocab.txt, which its sentences are read with; copy it into {printable(folder)}')
  pieces = list(read_vocabulary(file))
  recorded, rows = read_description(name_or_dir)['vocabulary'], config.text_encoder.vocab_size
  expected = recorded.get('words', rows)
  if len(pieces) != expected or len(pieces) > rows:
    raise UserError(
      f'{printable(file)} has {len(pieces)} word pieces and the model {expected} (embeddings: {rows}); '
      f'it is of another model, copy the one that belongs here'
    )
  if recorded.get('sha256', fingerprint(pieces)) != fingerprint(pieces):
    raise UserError(
      f'{printable(file)} has {len(pieces)} word pieces as the model was saved with, but others; '
      f'copy the one that belongs here'
    )
  return file


def check_words(words: int, config: DitSamConfig, file: Path) -> None:
  """Raises UserError where a vocabulary has more word pieces than the text encoder embeds."""
  rows = config.text_encoder.vocab_size if config.text_encoder else 0
  if words > rows:
    raise UserError(
      f'{printable(file)} has {words} word pieces, the text encoder {rows}; give its own vocabulary, '
      f'or set model.text_encoder.vocab_size'
    )


def load(name_or_dir: str | os.PathLike) -> DitSam:
  """Rebuilds a model, in evaluation mode, weights in f32.

  Args:
    name_or_dir: a shipped model's name ('shapes'), a model's folder or a training run's workdir.

  Raises:
    UserError: missing, foreign or damaged.
  """
  return build(read_config(name_or_dir), read_weights(name_or_dir), str(name_or_dir))


def build(config: DitSamConfig, weights: dict[str, Any], name: str) -> DitSam:
  """A model of given weights by dotted path, in evaluation mode, in f32.

  Raises:
    UserError: weights that are missing, unknown, of another shape or no usable numbers; `name` says whose they are.
  """
  model = check_weights(config, weights, name)
  state = nnx.state(model, is_weight)
  for path, variable in nnx.to_flat_state(state):
    variable.set_value(jnp.asarray(weights[dotted(path)], jnp.float32))
  nnx.update(model, state)
  fill_streams(model)
  model.eval()
  return model


def check_weights(config: DitSamConfig, weights: dict[str, Any], name: str) -> DitSam:
  """The abstract model of a config.

  Raises:
    UserError: the weights by dotted path are not all of it and of its shapes, or are no usable numbers.
  """
  model = nnx.eval_shape(lambda: DitSam(config, rngs=nnx.Rngs(0)))
  _refuse(arrays.differences(weights, weights_of(model)), name, 'weights do not fit model.json')
  _refuse(arrays.unusable(weights.items()), name, 'weights cannot be computed with')
  return model


def size(directory: str | os.PathLike) -> int:
  """Bytes of all files of a model's folder."""
  return sum(file.stat().st_size for file in Path(directory).rglob('*') if file.is_file())


def read_weights(name_or_dir: str | os.PathLike) -> dict[str, np.ndarray]:
  """All weights by dotted path, in the type they are stored in.

  Raises:
    UserError: missing, damaged, or larger than the config says, which is noticed before they are read.
  """
  folder, config = resolve(name_or_dir) / 'weights', read_config(name_or_dir)
  model = nnx.eval_shape(lambda: DitSam(config, rngs=nnx.Rngs(0)))
  stored = arrays.shapes_and_types(folder)
  problems = arrays.differences(stored, weights_of(model)) or [
    f'{name} is {array.dtype}, expected floating-point numbers'
    for name, array in stored.items()
    if not jnp.issubdtype(array.dtype, jnp.floating)
  ]
  _refuse(problems, name_or_dir, 'weights do not fit model.json')
  return arrays.read(folder)


def read_leftovers(name_or_dir: str | os.PathLike) -> dict[str, np.ndarray]:
  """What a converted model carries along for the way back, by the source's names; often nothing."""
  folder = resolve(name_or_dir) / 'leftovers'
  return arrays.read(folder) if folder.exists() else {}


def save(
  directory: str | os.PathLike,
  model: DitSam,
  *,
  vocabulary: Path | None = None,
  data: dict[str, Any] | None = None,
  notes: dict[str, Any] | None = None,
  fresh: Sequence[str] = (),
  assumed: Sequence[str] = (),
  dtype=jnp.float32,
) -> Path:
  """Writes a model whole or not at all; an earlier one at that place is replaced.

  Args:
    directory: the folder to be.
    model: what to write.
    vocabulary: the tokeniser's file, for models that take text.
    data: what it was trained on, plain containers.
    notes: anything worth keeping (scores, steps), plain containers.
    fresh: parts that were never trained, see `parts_of`.
    assumed: fields of the config that nobody stated and its source does not tell.
    dtype: type the weights are stored in; f16 halves the size of a shipped model.

  Raises:
    UserError: it cannot be written, or would hold weights that are no usable numbers (too large for f16, say).
  """
  weights = {name: variable[...].astype(dtype) for name, variable in weights_of(model).items()}
  _refuse(arrays.unusable(weights.items()), directory, f'weights stored as {jnp.dtype(dtype)}', 'choose another dtype')
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
) -> Path:
  """`save` for weights by dotted path, each in the type it is to be stored in; see there.

  Args:
    vocabulary: the word pieces, in the order of their ids.
    leftovers: arrays that no parameter holds, kept so that a way back to their source is complete.
  """
  directory = Path(directory).absolute()
  temporary = directory.parent / f'.{directory.name}.writing-{os.getpid()}'
  config = dataclasses.replace(config, attention='auto')  # how to compute is no property of the weights
  description: dict[str, Any] = {'format': FORMAT, 'model': config.to_dict()}
  if vocabulary is not None:
    description['vocabulary'] = {'words': len(vocabulary), 'sha256': fingerprint(vocabulary)}
  description |= {'fresh': list(fresh), 'assumed': list(assumed), 'data': data or {}, 'notes': notes or {}}
  try:
    _check_target(directory)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    (temporary / 'model.json').write_text(json.dumps(description, indent=1) + '\n')
    if vocabulary is not None:
      (temporary / 'vocab.txt').write_text('\n'.join(vocabulary) + '\n', encoding='utf-8')
    arrays.write(temporary / 'weights', weights)
    if leftovers:
      arrays.write(temporary / 'leftovers', leftovers)
    _replace(temporary, directory)
  except (OSError, ValueError) as error:  # ValueError: a name that no folder can have
    reason = getattr(error, 'strerror', None) or error
    raise UserError(
      f'the model cannot be written to {printable(directory)}: {reason}; choose another place, or make room'
    ) from error
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
  return directory


def read_start(name_or_dir: str | os.PathLike, expected: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
  """Those of the expected weights (by dotted path, with shardings) that a saved model has, each read where it belongs.

  Raises:
    UserError: a weight of the same name has another shape, nothing fits at all, or values are no usable numbers.
  """
  folder = resolve(name_or_dir) / 'weights'
  stored = arrays.shapes_and_types(folder)
  name = f"init_from '{printable(name_or_dir)}'"
  wrong = [
    f'{name} is {stored[name].shape} there and {array.shape} here'
    for name, array in expected.items()
    if name in stored and stored[name].shape != array.shape
  ]
  found = {name: array for name, array in expected.items() if name in stored}
  if wrong or not found:
    raise UserError(
      f'{name} does not fit config.model: {listed(wrong, 4) or "no weight has the same name"}; make their sizes equal'
    )
  weights = arrays.read(folder, found)
  _refuse(arrays.unusable(weights.items()), name_or_dir, 'weights cannot be computed with')
  return weights


def fill_streams(model: DitSam) -> None:
  """Gives an abstractly built model real random streams (they matter in training mode only)."""
  abstract = nnx.state(model, nnx.RngState)
  for _, variable in nnx.to_flat_state(abstract):
    is_key = jnp.issubdtype(variable.dtype, jax.dtypes.prng_key)
    variable.set_value(jax.random.key(0) if is_key else jnp.zeros(variable.shape, variable.dtype))
  nnx.update(model, abstract)


def _refuse(problems: list[str], name: str | os.PathLike, what: str, advice: str = 'copy the model again') -> None:
  if problems:
    raise UserError(f"'{printable(name)}': {what}: {listed(problems)}; {advice}")


def _check_target(directory: Path) -> None:
  """Raises UserError unless a model may be put there: nothing, an empty folder or an earlier model."""

  def refuse(reason: str):
    raise UserError(f'the model cannot be written to {printable(directory)}: {reason}; choose another place')

  if not directory.name or directory.exists() and not directory.is_dir():
    refuse('this is no name for a folder' if not directory.name else 'a file of that name is there')
  if directory.is_dir() and any(directory.iterdir()):
    try:
      if not {'format', 'model', 'data', 'notes'} <= set(read_json(directory / 'model.json')):
        refuse('the folder holds something else')
    except (UserError, TypeError):
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
