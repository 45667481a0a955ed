"""Command-line changes to a config: --config.any.field=value."""

from typing import Any

from ml_collections import ConfigDict

from ditsam_jax import fields
from ditsam_jax.config import checks, start
from ditsam_jax.config.recipes import as_config_dict
from ditsam_jax.config.run import RunConfig
from ditsam_jax.errors import UserError

# Alternatives: changing one field clears the other.
_ALTERNATIVES = {'epochs': 'total_steps', 'total_steps': 'epochs'}


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
  """Splits arguments into config changes, 'any.field=value' as accepted by `apply`, and all others."""
  changes = [argument.removeprefix('--config.') for argument in arguments if argument.startswith('--config.')]
  return changes, [argument for argument in arguments if not argument.startswith('--config.')]


def apply(config: ConfigDict, changes: list[str]) -> None:
  """Applies changes in order, in place; those of `model` last, because the model may come from `init_from`.

  Args:
    config: the config to change.
    changes: 'any.field=value', values as Python literals or bare strings.

  Raises:
    UserError: a field is unknown (the message suggests similar names), does not accept the value, or does not fit the
      weights of `init_from`.
  """
  of_model = [change for change in changes if change.startswith('model.')]
  given = [_apply(config, change) for change in changes if not change.startswith('model.')]
  for name, other in _ALTERNATIVES.items():
    if name in given and other not in given and config[name] is not None:
      config[other] = None
  from_start = config.model is None
  if from_start:
    config.model = as_config_dict(start.model_of(config.init_from))
  for change in of_model:
    _apply(config, change)
  if from_start and of_model:
    start.check_changes(checks.plain(config.model), config.init_from, whole=True)


def _apply(config: ConfigDict, change: str) -> str:
  path, equals, text = change.partition('=')
  if not equals:
    raise UserError(f'--config.{path} needs a value: --config.{path}=VALUE')
  try:
    field = fields.find(RunConfig, path, 'config')
  except ValueError as error:
    raise UserError(str(error)) from error
  *parents, name = path.split('.')
  node: Any = config
  trail = 'config'
  for parent in parents:
    node, trail = node[parent], f'{trail}.{parent}'
    if node is None:
      raise UserError(f'{trail} is None, and has no field {path[len(trail) - 6 :]!r} to be set')
  if field.group:
    if text != 'None' or not field.none:
      names = ', '.join(sorted(fields.fields(field.group)))
      raise UserError(f'config.{path} is a group of fields ({names}); set one of them')
    node[name] = None
    return path
  value = field.kind.parse(text)
  if not field.kind.accepts(value):
    raise UserError(f'config.{path} is {fields.shown(value)}; {field.kind.hint(value)}expected {field.kind.expected}')
  value = field.kind.normal(value)
  with node.ignore_type():
    node[name] = list(value) if isinstance(value, tuple) else value
  return path
