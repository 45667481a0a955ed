"""Validates a config: each field by its declaration, and combinations of fields."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from ditsam_jax import fields
from ditsam_jax.config import start
from ditsam_jax.config.first_prompts import FirstPromptConfig
from ditsam_jax.config.freeze import freeze_patterns
from ditsam_jax.config.run import RunConfig, reads_text
from ditsam_jax.data import datasets
from ditsam_jax.errors import UserError
from ditsam_jax.models import config as models


def check(config: ConfigDict) -> RunConfig:
  """Validates a config and converts it to dataclasses; a model that is None becomes that of `init_from`.

  Raises:
    UserError: the first invalid field or combination.
  """
  run = check_fields(config)
  if run.model is None:
    run = dataclasses.replace(run, model=start.model_of(run.init_from))
  try:
    data = datasets.find(run.data.dataset, run.data.data_dir)[0]
  except UserError as error:
    raise UserError(f'config.data.dataset is {run.data.dataset!r}: {error}') from error
  if reads_text(run.task) and run.model.text_encoder is None:
    whose = f' (init_from={run.init_from!r} takes no text)' if run.init_from else ''
    _refuse('model.text_encoder', f'None{whose}', f'a text encoder for task {run.task!r}')
  if run.task == 'text' and run.rounds > 1:
    _refuse('rounds', run.rounds, "1 for task 'text', which has no clicks; config.task=interactive trains with them")
  if run.task != 'interactive' and run.first_prompts != FirstPromptConfig():
    _refuse('first_prompts', '{...}', f"its default for task {run.task!r}; only task 'interactive' reads it")
  if run.task == 'prompts' and data.generalised:
    _refuse(
      'data.dataset',
      run.data.dataset,
      "data in which every mask is one object, for task 'prompts'; here some are empty",
    )
  if run.task == 'interactive' and run.data.batch_size % (run.sample_group * run.accumulate):
    every = 'micro-batch' if run.accumulate > 1 else 'batch'
    _refuse(
      'data.batch_size',
      run.data.batch_size,
      f'a multiple of {run.sample_group * run.accumulate}, so that every {every} has the same share of '
      f'samples with a sentence (first_prompts)',
    )
  if run.epochs is not None and run.total_steps is not None:
    _refuse(
      'total_steps', run.total_steps, f'None, because config.epochs is {run.epochs:g}; set one and leave the other None'
    )
  if run.epochs is None and run.total_steps is None:
    _refuse('total_steps', None, 'a whole number, unless config.epochs is set')
  check_warmup(run.optimizer.warmup_steps, run.total_steps)
  for name in ('warmup_start', 'min_learning_rate'):
    if (rate := getattr(run.optimizer, name)) > run.optimizer.learning_rate:
      _refuse(f'optimizer.{name}', rate, f'at most the peak, optimizer.learning_rate ({run.optimizer.learning_rate:g})')
  if not any((run.loss.bce, run.loss.dice, run.loss.iou)):
    raise UserError('config.loss.bce, dice and iou are all 0; expected one of them above 0')
  if run.data.scenes is not None and not data.small:
    _refuse('data.scenes', '{...}', f'None for data set {run.data.dataset!r}; scenes apply to shapes only')
  for name in ('phrases_per_scene', 'absent_per_scene'):
    number = getattr(run.data.scenes, name, 0)
    if run.task == 'prompts' and number:
      _refuse(
        f'data.scenes.{name}', number, "0 for task 'prompts': phrases name several shapes or none, and are not read"
      )
  run.data.augmentation.check(run.model.image_size)
  freeze_patterns(run.freeze)
  if run.data.add_words and not (run.init_from and reads_text(run.task)):
    _refuse('data.add_words', run.data.add_words, "'' unless config.init_from names a model that reads sentences")
  if reads_text(run.task):
    for field, split in [('final_split', run.final_split)] + [('eval_every', 'val')] * (run.eval_every != 0):
      try:
        datasets.check_splits(run.data.dataset, [split], run.data.data_dir)
      except UserError as error:
        raise UserError(f'config.{field} is {getattr(run, field)!r}: {error}') from error
  return run


def check_fields(config: Any) -> RunConfig:
  """Validates each field on its own. Raises UserError if one is unknown, missing, of the wrong type or out of range."""
  try:
    return fields.read(RunConfig, plain(config), 'config', complete=True)
  except ValueError as error:
    raise UserError(str(error)) from error


def check_warmup(warmup_steps: int | None, total_steps: int | None) -> None:
  """Raises UserError unless the warm-up is shorter than the training, or one of them is not known yet."""
  if warmup_steps is not None and total_steps is not None and warmup_steps >= total_steps:
    _refuse('optimizer.warmup_steps', warmup_steps, f'fewer than total_steps ({total_steps})')


def model_config(config: ConfigDict) -> models.DitSamConfig:
  """Returns the model config of `config.model`. Raises UserError, naming the field."""
  try:
    return fields.read(models.DitSamConfig, plain(config.model), 'config.model')
  except ValueError as error:
    raise UserError(str(error)) from error


def plain(value: Any) -> Any:
  """Converts ConfigDicts to dictionaries and resolves references."""
  if isinstance(value, (ConfigDict, Mapping)):
    return {name: plain(item) for name, item in value.items()}
  return value


def _refuse(field: str, value: Any, expected: str) -> None:
  raise UserError(f'config.{field} is {value if isinstance(value, str) else repr(value)}; expected {expected}')
