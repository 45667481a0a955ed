"""Folders of exported files; replaces earlier exports only, and no other files in them."""

import contextlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from ditsam_jax.errors import UserError
from ditsam_jax.storage import folders
from ditsam_jax.storage.files import read_json
from ditsam_jax.storage.paths import local_path
from ditsam_jax.terminal import printable

IsExport = Callable[[Path], bool]  # whether a folder is an earlier export, from what only exports write


@contextlib.contextmanager
def written_folder(output: str, is_export: IsExport, parts: Collection[str]) -> Iterator[Path]:
  """Yields a temporary folder that then replaces `output`, or is deleted after an exception, see `storage/folders.py`.

  Args:
    output: the folder to write. It may be missing, empty, or an earlier export.
    is_export: whether a folder is an earlier export of this format.
    parts: names of all files that this format may have; other files in an earlier export are kept.

  Raises:
    UserError: `output` holds something else, or cannot be written; its old content is kept.
  """
  check_target(output, is_export)
  try:
    with folders.written_folder(local_path(output).absolute(), parts) as folder:
      yield folder
  except OSError as error:
    raise UserError(
      f'{printable(output)} cannot be written: {error.strerror or error}; choose another place, or free some space'
    ) from error


def check_target(output: str, is_export: IsExport) -> None:
  """Raises UserError unless the path is free, an empty folder or an earlier export of the same format."""
  target = local_path(output).absolute()
  try:
    if not target.name or target.exists() and not target.is_dir():
      raise UserError(f'{printable(output)} is a file, expected a folder; choose another --output')
    if target.is_dir() and any(target.iterdir()) and not is_export(target):
      raise UserError(
        f'{printable(output)} is not an earlier export of this format; choose another --output, or move it away'
      )
  except OSError as error:
    raise UserError(f'{printable(output)}: {error.strerror or error}; choose another --output') from error


def is_model(folder: Path) -> bool:
  """Whether a model folder is an export: only exports note the type of their weights."""
  notes = fields(folder / 'model.json').get('notes')
  return isinstance(notes, dict) and 'dtype' in notes


def fields(file: Path) -> dict[str, Any]:
  """The object in a JSON file; {} if there is none."""
  try:
    content = read_json(file)
  except UserError:
    return {}
  return content if isinstance(content, dict) else {}
