"""Options of commands."""

import argparse
from typing import NoReturn

from ditsam_jax.command_line import fail


class Parser(argparse.ArgumentParser):
  """Of a command's options: whole names only, and what is wrong in one line, without the usage before it."""

  def __init__(self, **settings):
    super().__init__(allow_abbrev=False, **settings)

  def error(self, message: str) -> NoReturn:
    fail(f'{message}; --help lists the options')
