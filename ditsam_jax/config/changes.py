"""Changes to a config from the command line: --config.any.field=value."""

from typing import Any

from ml_collections import ConfigDict

from ditsam_jax import fields
from ditsam_jax.config import checks, start
from ditsam_jax.config.recipes import as_config_dict
from ditsam_jax.config.run import RunConfig
from ditsam_jax.errors import UserError

# Two ways of saying one thing: a change of one takes the place of the recipe's other.
_INSTEAD = {'epochs': 'total_steps', 'total_steps': 'epochs'}


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
  """A command line's changes to the config, 'any.field=value' as `apply` takes them, and the rest of it."""
  changes = [argument.removeprefix('--config.') for argument in arguments if argument.startswith('--config.')]
  return changes, [argument for argument in arguments if not argument.startswith('--config.')]


def apply(config: ConfigDict, changes: list[str]) -> None:
  """Makes the changes, in order; those of the model's fields last, because the model may be that of `init_from`.

  Args:
    config: is changed.
    changes: 'any.field=value', values as Python literals or bare strings.

  Raises:
    UserError: an unknown field (its neighbours are named), a value that it does not take, or one that the weights of
      the model do not fit.
  """
  of_model = [change for change in changes if change.startswith('model.')]
  given = [_apply(config, change) for change in changes if not change.startswith('model.')]
  for name, other in _INSTEAD.items():
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
