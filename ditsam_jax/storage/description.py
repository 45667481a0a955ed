"""model.json: config, untrained and assumed values, and vocabulary of a saved model."""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ditsam_jax.errors import UserError
from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.storage.bucket import AnyPath
from ditsam_jax.storage.files import read_json
from ditsam_jax.storage.places import resolve
from ditsam_jax.storage.vocabulary import fingerprint, read_vocabulary
from ditsam_jax.terminal import listed, printable, say

FORMAT = 1
_FOLDER = re.compile(r'[0-9a-z-]{0,40}')
_KINDS = {list: 'a list', dict: 'fields by name', str: 'text'}
_FIELDS = {
  'model': dict,
  'data': dict,
  'notes': dict,
  'fresh': list,
  'assumed': list,
  'vocabulary': dict,
  'files': dict,
  'folder': str,
}


def read_description(name_or_dir: str | os.PathLike) -> dict[str, Any]:
  """Reads model.json as plain containers.

  Returns:
    'model', 'data' and 'notes'; 'fresh' and 'assumed', lists of names; 'vocabulary', the number of words and their
    fingerprint, or {}; 'folder', where all other files are, '' for beside model.json; 'files', their checksums, {} in
    models that predate them.

  Raises:
    UserError: the file cannot be read, or does not describe a model.
  """
  file = resolve(name_or_dir) / 'model.json'
  content = read_json(file)
  if not isinstance(content, dict) or 'format' not in content or 'model' not in content:
    raise UserError(
      f'{printable(file)} is damaged or not a ditsam_jax model (it has no format and model); copy the model again'
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
        f'expected {_KINDS[kind]}; copy the model again'
      )
  if not _FOLDER.fullmatch(description['folder']):
    raise UserError(
      f'{printable(file)}: folder is {printable(description["folder"])}, expected a name; copy the model again'
    )
  return description


def contents(name_or_dir: str | os.PathLike) -> Path:
  """Returns the folder with the vocabulary and weights of a model. Raises UserError if model.json is damaged."""
  return resolve(name_or_dir) / read_description(name_or_dir)['folder']


def read_config(name_or_dir: str | os.PathLike) -> DitSamConfig:
  """Returns the model's config. Raises UserError if model.json is damaged."""
  fields = read_description(name_or_dir)['model']
  try:
    return DitSamConfig.from_dict(fields)
  except (ValueError, TypeError, KeyError, OverflowError, UserError) as error:
    raise UserError(f'{printable(resolve(name_or_dir) / "model.json")}: {printable(error, 500)}') from error


def data_config(name_or_dir: str | os.PathLike) -> dict[str, Any]:
  """Returns the data set the model was trained on: {'dataset': ..., 'scenes': ...}."""
  return read_description(name_or_dir)['data']


def fresh_parts(name_or_dir: str | os.PathLike) -> list[str]:
  """Returns the parts of the model that were never trained, such as ['image_encoder.instruction', 'text_proj']."""
  return [str(part) for part in read_description(name_or_dir)['fresh']]


def check_reads_points(name_or_dir: str | os.PathLike) -> None:
  """Raises UserError if the model was trained with sentences only, as far as model.json tells."""
  if read_description(name_or_dir)['notes'].get('task') == 'text':
    raise UserError(
      f"{printable(name_or_dir)} was trained with sentences only (task 'text'), so its masks of single points mean "
      f'nothing; find objects with a model trained with points, such as sam_shapes_multimask or a SAM, and pass this '
      f'one as text_model (--text-checkpoint) to read phrases'
    )


def warn_if_fresh(name_or_dir: str | os.PathLike) -> None:
  """Warns on stderr if parts of a model were never trained."""
  parts = fresh_parts(name_or_dir)
  if parts:
    say(
      f'warning: {printable(name_or_dir)}: {listed(parts)} {"is" if len(parts) == 1 else "are"} untrained; '
      f'expect meaningless masks until it is trained (--config.init_from of ditsam_jax.train)'
    )


def parts_of(names: Iterable[str]) -> list[str]:
  """Returns the sorted parts of a model, as in `fresh_parts`, that contain parameters given by dotted path."""
  return sorted({'.'.join(name.split('.')[: 2 if name.startswith('image_encoder') else 1]) for name in names})


def vocabulary_file(name_or_dir: str | os.PathLike) -> Path:
  """Returns the tokenizer's vocabulary file: vocab.txt, or Hugging Face's tokenizer.json if that is missing.

  Raises:
    UserError: the model takes no text, or its vocabulary is missing or belongs to another model.
  """
  name, folder, config = f"'{printable(name_or_dir)}'", contents(name_or_dir), read_config(name_or_dir)
  if config.text_encoder is None:
    raise UserError(f'{name} has no vocab.txt: it takes no text; use a text-prompted model, such as shapes')
  file = next((file for file in (folder / 'vocab.txt', folder / 'tokenizer.json') if file.exists()), None)
  if file is None:
    raise UserError(f'{name} has no vocab.txt, which it needs to read sentences; copy it into {printable(folder)}')
  pieces = list(read_vocabulary(file))
  recorded, rows = read_description(name_or_dir)['vocabulary'], config.text_encoder.vocab_size
  expected = recorded.get('words', rows)
  if len(pieces) != expected or len(pieces) > rows:
    raise UserError(
      f'{printable(file)} has {len(pieces)} word pieces and the model {expected} (embeddings: {rows}); '
      f'it belongs to another model; copy the right one'
    )
  if recorded.get('sha256', fingerprint(pieces)) != fingerprint(pieces):
    raise UserError(
      f'{printable(file)} has {len(pieces)} word pieces, the number the model was saved with, but different ones; '
      f'copy the right one'
    )
  return file


def check_words(words: int, config: DitSamConfig, file: AnyPath) -> None:
  """Raises UserError if a vocabulary has more word pieces than the text encoder has embeddings."""
  rows = config.text_encoder.vocab_size if config.text_encoder else 0
  if words > rows:
    raise UserError(
      f'{printable(file)} has {words} word pieces, the text encoder {rows}; give its own vocabulary, '
      f'or set model.text_encoder.vocab_size'
    )
