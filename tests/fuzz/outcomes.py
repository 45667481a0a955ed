"""Checks of a case's outcome: a correct result or a one-line error. Anything else is a violation."""

import contextlib
import io
import json
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ditsam_jax.errors import UserError

ACCEPTED, REFUSED, PARTLY = 'accepted', 'refused', 'partly'
_LONGEST_LINE = 2100
_JOINERS = re.compile('[\u200c\u200d]')
_UNFINISHED = re.compile(r'\.writing|\.retired|\.deleting|^incomplete\.')


class Violation(Exception):
  """Something that must never happen.

  Attributes:
    kind: 'traceback', 'noise', 'message', 'partial output', 'wrong result', 'not finite', 'execution', ...
  """

  def __init__(self, kind: str, detail: str):
    super().__init__(f'{kind}: {detail}')
    self.kind = kind


class Ran(NamedTuple):
  """The result of a command run in this process."""

  status: int
  output: str
  errors: str

  @property
  def outcome(self) -> str:
    return ACCEPTED if self.status == 0 else REFUSED


def check_line(text: str) -> None:
  """Checks that an error is one printable line of reasonable length."""
  if not text.strip():
    raise Violation('message', 'empty')
  if not _JOINERS.sub('', text).isprintable():
    raise Violation('message', f'not printable: {text[:500]!r}')
  if len(text) > _LONGEST_LINE:
    raise Violation('message', f'{len(text)} characters: {text[:300]}')


def attempt(work: Callable[[], Any]) -> tuple[str, Any]:
  """Calls `work`; returns (ACCEPTED, its result), or (REFUSED, None) if it raises UserError."""
  try:
    return ACCEPTED, work()
  except UserError as error:
    check_line(str(error))
    return REFUSED, None
  except Violation:
    raise
  except Exception as error:
    raise Violation('traceback', _short(error)) from error


def command(main: Callable[[list[str]], int | None], arguments: list[str], may_warn: bool = True) -> Ran:
  """Runs a command's main as `command_line.run` does: UserErrors and errors of the system become one line.

  Raises:
    Violation: any other exception was raised, or the output is malformed.
  """
  output, errors = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
    try:
      status = main(arguments) or 0
    except UserError as error:
      check_line(str(error))
      status = 2
    except SystemExit as end:
      status = int(end.code or 0)
      lines = errors.getvalue().splitlines()
      if status == 2:
        check_line(lines[-1] if lines else '')
    except OSError as error:
      if not isinstance(error.errno, int):
        raise Violation('traceback', _short(error)) from error
      status = 2
    except Violation:
      raise
    except Exception as error:
      raise Violation('traceback', _short(error)) from error
  check_printed(output.getvalue())
  check_printed(errors.getvalue())
  if status not in (0, 2):
    raise Violation('status', f'{status}, expected 0 or 2')
  return Ran(status, output.getvalue(), errors.getvalue())


def check_printed(text: str) -> None:
  """Checks that a command's output has no traceback, no control characters and no line forged by an input."""
  if 'Traceback (most recent' in text:
    raise Violation('noise', text[-1500:])
  for line in text.replace('\r', '\n').split('\n'):
    if not _JOINERS.sub('', line.replace('\t', ' ')).isprintable():
      raise Violation('message', f'not printable: {line[:300]!r}')
    if line.startswith('error: forged'):
      raise Violation('message', 'an input forged a line')


def check_folder(folder: Path, allowed: set[str] | None = None) -> None:
  """Checks that a folder tree has no unfinished files, and at its top only names in `allowed`, if given."""
  for path in folder.rglob('*'):
    if _UNFINISHED.search(path.name):
      raise Violation('partial output', f'{path.relative_to(folder)} was left')
  if allowed is not None and folder.is_dir():
    others = sorted(path.name for path in folder.iterdir() if path.name not in allowed)
    if others:
      raise Violation('partial output', f'{others[:5]} was left')


def check_numbers(**arrays: np.ndarray) -> None:
  """Checks that all values are finite."""
  for name, array in arrays.items():
    if not np.isfinite(np.asarray(array, np.float64)).all():
      raise Violation('not finite', name)


def strict_json(text: str | bytes) -> Any:
  """Parses standard JSON, without NaN. Raises Violation."""

  def refuse(constant: str):
    raise ValueError(f'{constant} is not JSON')

  try:
    return json.loads(text, parse_constant=refuse)
  except ValueError as error:
    raise Violation('partial output', f'{error}: {text[:200]!r}') from error


def _short(error: BaseException) -> str:
  places = [f'{frame.filename[-50:]}:{frame.lineno}' for frame in traceback.extract_tb(error.__traceback__)[-6:]]
  return f'{type(error).__name__}: {str(error)[:300]!r} at {" < ".join(reversed(places))}'
