"""Files that appear under their name only once they are whole."""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

UNFINISHED = r'\.writing-[0-9a-f]{32}'  # names of what a killed process leaves


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
  """A path to write to, whose file takes the place of `path` at the end, or goes where an exception ends the block.

  Raises:
    OSError: names `path`, whose old content is still there.
  """
  unfinished = path.with_name(f'.writing-{uuid.uuid4().hex}')
  try:
    yield unfinished
    os.replace(unfinished, path)
  except OSError as error:
    raise OSError(error.errno, error.strerror or str(error), str(path)) from error
  finally:
    with contextlib.suppress(OSError):  # the folder itself may be missing
      unfinished.unlink()


def write_text(path: Path, text: str) -> None:
  """Writes a file whole or not at all. Raises OSError, which names the file."""
  with written_whole(path) as unfinished:
    unfinished.write_text(text)


def write_json(path: Path, data: Any) -> None:
  """Writes JSON whole or not at all. Raises OSError, which names the file."""
  write_text(path, json.dumps(data, indent=1) + '\n')
