"""Expands files, folders and globs from the command line into a list of image files, compact even for millions."""

import glob
import os
from collections.abc import Iterator, Sequence

from ditsam_jax.errors import UserError
from ditsam_jax.storage.image_files import endings
from ditsam_jax.terminal import printable

_END = '\0'  # never part of a file name


class ImagePaths:
  """Paths of image files, listed once, in order.

  A folder stands for the image files directly in it, a glob for the image files it matches ('photos/**/*.jpg' includes
  subfolders). Both recognise image files by extension and skip those for which `is_result` is true. Single files are
  always included. The names of a folder are stored in one string, which takes 100 bytes less per name than a list.
  """

  def __init__(self, named: Sequence[str], is_result=lambda path: False) -> None:
    """Lists the files.

    Raises:
      UserError: a file or folder does not exist, a glob matches nothing, or there are no images.
    """
    self._parts = [_listed(name, is_result) for name in dict.fromkeys(named)]

  def __iter__(self) -> Iterator[str]:
    for folder, names in self._parts:
      start = 0
      while (end := names.find(_END, start)) >= 0:
        yield os.path.join(folder, names[start:end])
        start = end + 1


def _listed(name: str, is_result) -> tuple[str, str]:
  """Lists one argument; returns (folder, names of its files, each followed by _END)."""
  if '\0' in name or not name:
    raise UserError(f'--image={printable(name)}: not a file name')
  if os.path.isdir(name):
    return _of_folder(name, is_result)
  if os.path.exists(name):
    return '', name + _END
  if not glob.has_magic(name):
    raise UserError(f'--image={printable(name)}: no such file or folder')
  matches = sorted(path for path in glob.iglob(name, recursive=True) if not os.path.isdir(path))
  images = [path for path in matches if _is_image(path) and not is_result(path)]
  if not images:
    found = f'{len(matches):,} files match, but none has an image file extension' if matches else 'no file matches'
    raise UserError(f'--image={printable(name)}: {found}')
  return '', ''.join(path + _END for path in images)


def _of_folder(folder: str, is_result) -> tuple[str, str]:
  try:
    with os.scandir(folder) as entries:
      names = sorted(entry.name for entry in entries if _is_image(entry.name) and not entry.is_dir())
  except OSError as error:
    raise UserError(f'--image={printable(folder)}: cannot be listed ({error.strerror})') from error
  names = [file for file in names if not is_result(os.path.join(folder, file))]
  if not names:
    deeper = os.path.join(printable(folder), '**', '*')
    raise UserError(
      f"--image={printable(folder)}: no image files in this folder; for its subfolders too, give '{deeper}'"
    )
  return folder, ''.join(file + _END for file in names)


def _is_image(path: str) -> bool:
  return not os.path.basename(path).startswith('.') and os.path.splitext(path)[1].lower() in endings()
