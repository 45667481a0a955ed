"""Loads configs by name or from a user's Python file. Errors in a file give one line with file and line number."""

import inspect
import os
import stat
import sys
import traceback
import types
import warnings
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ditsam_jax import fields
from ditsam_jax.config import changes
from ditsam_jax.config.checks import check, check_fields, plain
from ditsam_jax.config.recipes import TABLE, named
from ditsam_jax.errors import UserError
from ditsam_jax.storage import paths

HELP = f'a name ({", ".join(TABLE)}) or a Python file, optionally with a data set after a colon: ldit:shapes'
_LARGEST = 1_000_000  # bytes
_MODULE = 'ditsam_jax_config_file'


def load(argument: str, overrides: list[str]) -> ConfigDict:
  """Loads a config by name or from a file and applies changes. Lengths that are None are derived later, see lengths.py.

  Args:
    argument: 'ldit', 'ldit:shapes', 'configs/ldit.py' or 'configs/ldit.py:shapes'.
    overrides: 'any.field=value', values as Python literals or bare strings.

  Raises:
    UserError: the name or file does not exist, the file fails, or fields are unknown or invalid.
  """
  name, choice = _split(argument and paths.local(argument))
  if _is_file_name(name):
    config = _from_file(name, choice)
    try:
      check_fields(config)
    except UserError as error:
      raise UserError(f'{name}: {error}') from error
  else:
    config = named(name, choice)
  changes.apply(config, overrides)
  check(config)
  return config


def short_name(argument: str) -> str:
  """Returns 'ldit' for 'configs/ldit.py:shapes'."""
  return Path(_split(argument)[0]).stem


def _split(argument: str) -> tuple[str, str]:
  """Splits into a name or file and the data set after the colon, '' if there is none."""
  if os.path.lexists(argument):
    return argument, ''
  name, _, choice = argument.rpartition(':')
  return (name, choice) if name else (argument, '')


def _is_file_name(name: str) -> bool:
  return name not in TABLE and (name.endswith('.py') or os.sep in name or os.path.lexists(name))


def _from_file(file: str, choice: str) -> ConfigDict:
  """Runs `get_config` of a file; returns a copy of its result."""
  code = _compiled(file, _source(file))
  module = types.ModuleType(_MODULE)
  module.__file__ = file
  sys.modules[_MODULE] = module  # dataclasses, among others, look up their module
  try:
    exec(code, module.__dict__)  # a config file is the user's own code
    get_config = getattr(module, 'get_config', None)
    if not callable(get_config):
      near = fields.did_you_mean('get_config', [name for name in vars(module) if not name.startswith('_')])
      raise UserError(f'{file} has no function get_config; {near}expected def get_config(data_set=...)')
    arguments = [choice] if choice else []
    _check_signature(file, get_config, arguments)
    config = get_config(*arguments)
    if not isinstance(config, ConfigDict):
      raise UserError(
        f'{file}: get_config returned {_article(config)}; expected an ml_collections.ConfigDict, '
        f"such as ditsam_jax.config.recipe('shapes')"
      )
    return ConfigDict(plain(config))
  except (UserError, KeyboardInterrupt):
    raise
  except BaseException as error:  # including SystemExit
    raise UserError(f'{_place(file, error)}: {_reason(error)}') from error
  finally:
    sys.modules.pop(_MODULE, None)


def _source(file: str) -> bytes:
  path = Path(file)
  try:
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
      raise UserError(f'config file {file!r} is a folder; give one of the files in it, or a name ({", ".join(TABLE)})')
    if not stat.S_ISREG(mode):
      raise UserError(f'config file {file!r} is not a regular file; give a Python file, or a name ({", ".join(TABLE)})')
    if path.stat().st_size > _LARGEST:
      raise UserError(f'config file {file!r} has {path.stat().st_size:,} bytes; expected at most {_LARGEST:,}')
    return path.read_bytes()
  except FileNotFoundError as error:
    beside = [str(one) for one in sorted(path.parent.glob('*.py'))[:20]] if path.parent.is_dir() else []
    there = f'in {str(path.parent)!r} there are {", ".join(beside)}' if beside else f'names are {", ".join(TABLE)}'
    raise UserError(
      f'config file {file!r} does not exist; {fields.did_you_mean(file, beside + list(TABLE))}{there}'
    ) from error
  except OSError as error:
    raise UserError(f'config file {file!r} cannot be read ({error.strerror or error}); give another one') from error


def _compiled(file: str, source: bytes) -> types.CodeType:
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      return compile(source, file, 'exec')
  except SyntaxError as error:
    place = f'{file}:{error.lineno}' if error.lineno else file
    raise UserError(f'{place}: {error.msg}; expected Python in UTF-8') from error
  except (ValueError, MemoryError, RecursionError, OverflowError) as error:
    raise UserError(f'{file}: {_reason(error)}; expected a Python file') from error


def _check_signature(file: str, get_config: Any, arguments: list[str]) -> None:
  try:
    inspect.signature(get_config).bind(*arguments)
  except TypeError as error:
    line = getattr(getattr(get_config, '__code__', None), 'co_firstlineno', None)
    given = f'{arguments[0]!r} after the colon' if arguments else 'nothing after the colon'
    raise UserError(
      f'{file}{f":{line}" if line else ""}: get_config cannot be called with {given} ({error}); '
      f"expected def get_config(data_set='shapes')"
    ) from error


def _place(file: str, error: BaseException) -> str:
  """The file and the line in it that was executed last."""
  lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
  return f'{file}:{lines[-1]}' if lines else file


def _reason(error: BaseException) -> str:
  try:
    text = ' '.join(str(error).split())[:300]
  except Exception:  # a user-defined exception whose __str__ fails
    text = ''
  name = type(error).__name__
  if isinstance(error, SystemExit):
    return f'the file calls exit (SystemExit {text}); expected it to define get_config only'
  if isinstance(error, RecursionError):
    return 'endless recursion (RecursionError)'
  return f'{name}: {text}' if text else name


def _article(value: Any) -> str:
  return 'None' if value is None else f'a value of type {type(value).__name__}'
