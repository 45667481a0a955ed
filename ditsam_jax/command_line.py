"""What every command shares: bad input becomes one clear line and exit status 2."""

import os
import sys
from collections.abc import Callable


class UserError(Exception):
  """Bad input. The message names the thing, its value, what was expected and what to do, on one line."""


def say(text: str) -> None:
  """A line on stderr, at once: what goes on, beside the results on stdout."""
  print(text, file=sys.stderr, flush=True)


def fail(message: str) -> None:
  """Ends the process with status 2 after one line on stderr."""
  print(f'error: {" ".join(str(message).split())}', file=sys.stderr)
  sys.exit(2)


def run(main: Callable[[], int | None]) -> None:
  """Calls `main` and exits with its status; a `UserError` prints one line and exits with 2."""
  try:
    sys.exit(main() or 0)
  except UserError as error:
    fail(str(error))
  except BrokenPipeError:  # whoever read our output has gone; nothing can be said to them
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(141)
  except PermissionError as error:
    fail(f'{error.filename}: {error.strerror}; choose another place, or change its permissions')
  except OSError as error:
    if error.filename is None:  # none of the user's files: a defect, whose traceback helps
      raise
    fail(f'{error.filename}: {error.strerror}')
  except KeyboardInterrupt:
    print('interrupted', file=sys.stderr)
    sys.exit(130)
