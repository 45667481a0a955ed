"""Command-line option parsing."""

import argparse
from typing import NoReturn

from ditsam_jax.command_line import fail


class Parser(argparse.ArgumentParser):
  """An ArgumentParser without abbreviations that reports errors in one line, without the usage."""

  def __init__(self, **settings):
    super().__init__(allow_abbrev=False, **settings)

  def error(self, message: str) -> NoReturn:
    fail(f'{message}; --help lists the options')
