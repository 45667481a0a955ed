"""Folders of exported files; replaces earlier exports only."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ditsam_jax.errors import UserError
from ditsam_jax.storage import folders
from ditsam_jax.storage.paths import local_path
from ditsam_jax.terminal import printable


@contextlib.contextmanager
def written_folder(output: str, marker: str) -> Iterator[Path]:
  """Yields a temporary folder that then replaces `output`, or is deleted after an exception, see `storage/folders.py`.

  Args:
    output: the folder to write. It may be missing, empty, or an earlier export, which is replaced.
    marker: a file that every export of this format has; a folder without it is not replaced.

  Raises:
    UserError: `output` holds something else, or cannot be written; its old content is kept.
  """
  check_target(output, marker)
  try:
    with folders.written_folder(local_path(output).absolute()) as folder:
      yield folder
  except OSError as error:
    raise UserError(
      f'{printable(output)} cannot be written: {error.strerror or error}; choose another place, or free some space'
    ) from error


def check_target(output: str, marker: str) -> None:
  """Raises UserError unless the path is free, an empty folder or an earlier export, which has the file `marker`."""
  target = local_path(output).absolute()
  try:
    if not target.name or target.exists() and not target.is_dir():
      raise UserError(f'{printable(output)} is a file, expected a folder; choose another --output')
    if target.is_dir() and any(target.iterdir()) and not (target / marker).is_file():
      raise UserError(f'{printable(output)} is not an earlier export (it has no {marker}); choose another --output')
  except OSError as error:
    raise UserError(f'{printable(output)}: {error.strerror or error}; choose another --output') from error
