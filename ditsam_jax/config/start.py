"""Takes a config's model from the one that training starts from, and refuses changes that do not fit its weights."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ditsam_jax import fields
from ditsam_jax.errors import UserError
from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.models.instruction import FUSIONS
from ditsam_jax.storage.description import read_config

# Model fields that do not affect weights.
_FREE = {
  'image_size',
  'pixel_mean',
  'pixel_std',
  'max_text_tokens',
  'mask_threshold',
  'align_corners',
  'fusion_dropout',
  'image_encoder.attention_scope',
  'text_encoder.dropout',
}
# Fields that determine which weights exist; weights missing from the start are initialised. Shapes are compared later.
_EXTENSIBLE = {
  'fusion',
  'image_encoder.depth',
  'image_encoder.global_blocks',
  'image_encoder.pretrain_window',
  'mask_decoder.depth',
  'text_encoder.depth',
}


def model_of(init_from: str) -> DitSamConfig:
  """Returns the model of `init_from`, for configs whose `model` is None.

  Raises:
    UserError: `init_from` is empty or cannot be read.
  """
  if not init_from:
    raise UserError(
      "config.init_from is '', but this config takes the model's sizes from it; give --config.init_from=MODEL: "
      "a model's folder, a run's workdir or a shipped model (shapes)"
    )
  try:
    return read_config(init_from)
  except UserError as error:
    raise UserError(f'config.init_from: {error}') from error


def check_changes(model: Mapping[str, Any], init_from: str, *, whole: bool) -> None:
  """Checks that the weights of `init_from` fit a model.

  Args:
    model: the run's model, as plain containers.
    init_from: the model that weights are taken from.
    whole: whether all weights are taken from it; otherwise missing parts are initialised.

  Raises:
    UserError: a field that cannot change differs, which the message names, or `init_from` cannot be read.
  """
  start = model_of(init_from)
  fixed_tokens = any(tensor.text_axis is not None for tensor in FUSIONS[start.fusion].tensors)
  free = _FREE - ({'max_text_tokens'} if fixed_tokens and whole else set())
  there = dataclasses.asdict(start)
  for path, field in fields.walk(DitSamConfig):
    value, started = _at(model, path), _at(there, path)
    if value == started or path in free or not whole and path in _EXTENSIBLE:
      continue
    absent = value is None or started is None
    if not whole and absent or field.group and not absent:
      continue  # a part missing from one model, or a group whose fields are compared separately
    raise UserError(
      f'config.model.{path} is {fields.shown(_brief(value))}; config.init_from={init_from!r} does not fit '
      f'config.model: it has {fields.shown(_brief(started))}, which cannot change; leave out '
      f'--config.model.{path}, or pass --config.model=None to take its model as it is'
    )


def _brief(value: Any) -> Any:
  return '{...}' if isinstance(value, dict) else value


def _at(config: Mapping[str, Any], path: str) -> Any:
  """Returns the value at a dotted path, with lists as tuples; None below a group that is None."""
  value: Any = config
  for name in path.split('.'):
    value = None if value is None else value[name]
  return tuple(value) if isinstance(value, list) else value
