"""Command-line option parsing, and options that several commands have."""

import argparse
import re
import sys
from typing import Any, NoReturn, Protocol

from ditsam_jax.command_line import fail
from ditsam_jax.errors import UserError
from ditsam_jax.fields import did_you_mean, shown
from ditsam_jax.storage import places
from ditsam_jax.storage.paths import local


class Parser(argparse.ArgumentParser):
  """An ArgumentParser without abbreviations that reports errors in one line, without the usage."""

  def __init__(self, **settings):
    super().__init__(allow_abbrev=False, **settings)
    self._given: list[str] = []

  def parse_known_args(self, args=None, namespace=None):
    self._given = list(sys.argv[1:] if args is None else args)
    return super().parse_known_args(args, namespace)

  def error(self, message: str) -> NoReturn:
    if message.endswith('expected one argument'):
      message += ' (join a value that starts with a dash: --option=-1,2)'
    # A misspelt option is the cause if argparse misses a required one.
    elif re.search('unrecognized|required', message) and (misspelt := self._misspelt()):
      fail(f'{misspelt}--help lists the options')
    fail(f'{message}; --help lists the options')

  def _misspelt(self) -> str:
    """The first unknown option that is similar to a known one, with a suggestion; '' if there is none."""
    known = set(re.findall('--[a-z][a-z-]*', self.format_usage())) | {'--help'}
    names = [word.partition('=')[0] for word in self._given if word.startswith('--')]
    hints = ((name, did_you_mean(name, known)) for name in names if name not in known)
    return next((f'unknown option {shown(name)}: {hint}' for name, hint in hints if hint), '')


class Adds(Protocol):
  """A parser, or a group of its options."""

  def add_argument(self, *names: str, **settings: Any) -> Any: ...


def add_image(group: Adds, *, required: bool = False) -> None:
  """Adds --image, a list of paths."""
  group.add_argument(
    '--image',
    nargs='+',
    action='extend',
    required=required,
    type=local,
    metavar='PATH',
    help="files, folders, or globs such as 'photos/**/*.jpg'",
  )


def add_checkpoint(group: Adds, default: str, role: str = '') -> None:
  """Adds --checkpoint, a saved model; `role` says what it is for."""
  group.add_argument(
    '--checkpoint',
    default=default,
    type=places.model,
    metavar='MODEL',
    help=f"{role}a saved model's folder, hf://OWNER/NAME, or a shipped model (default: %(default)s)",
  )


def add_dtype(group: Adds) -> None:
  """Adds --dtype."""
  from ditsam_jax.models.weights import DTYPES  # imports JAX, which some commands do not need

  group.add_argument(
    '--dtype',
    default='auto',
    choices=DTYPES,
    help='compute type; auto is bfloat16 on TPUs and GPUs, float32 on CPUs (default: %(default)s)',
  )


def add_batch_size(group: Adds) -> None:
  """Adds --batch-size, in prompts."""
  group.add_argument(
    '--batch-size', type=int, default=8, metavar='N', help='prompts per device and batch (default: %(default)s)'
  )


def check_batch_size(options: argparse.Namespace) -> None:
  """Raises UserError for a batch size below 1."""
  if options.batch_size < 1:
    raise UserError(f'--batch-size={options.batch_size}: expected a whole number of at least 1')
