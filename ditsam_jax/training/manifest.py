"""What a folder is made of: size and SHA-256 of every file, to know later whether it is still whole."""

import hashlib
import json
import os
from pathlib import Path

NAME = 'manifest.json'


def write(folder: Path) -> None:
  """Notes every file of `folder` in its manifest.json, all of it on the disk before this returns. Raises OSError."""
  files = {str(path.relative_to(folder)): _measure(path, to_disk=True) for path in _files(folder)}
  with (folder / NAME).open('w') as file:
    json.dump({'files': files}, file, indent=1)
    file.flush()
    os.fsync(file.fileno())


def problem(folder: Path) -> str | None:
  """What is wrong with a folder, in a few words; None if every file is as its manifest says."""
  try:
    files = json.loads((folder / NAME).read_text())['files']
    for name, (size, digest) in sorted(files.items()):
      path = folder / name
      if not path.is_file():
        return f'{name} is missing'
      if path.stat().st_size != size:
        return f'{name} has {path.stat().st_size} bytes instead of {size}'
      if _measure(path) != [size, digest]:
        return f'{name} has changed: its checksum is another'
  except FileNotFoundError:
    return f'{NAME} is missing'
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    return f'{NAME} or a file cannot be read ({error})'
  return None


def _files(folder: Path) -> list[Path]:
  return sorted(path for path in folder.rglob('*') if path.is_file() and path != folder / NAME)


def _measure(path: Path, *, to_disk: bool = False) -> list:
  with path.open('rb') as file:
    if to_disk:
      os.fsync(file.fileno())
    return [path.stat().st_size, hashlib.file_digest(file, 'sha256').hexdigest()]
