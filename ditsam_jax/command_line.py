"""What every command shares: bad input becomes one clear line and exit status 2."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from ditsam_jax.errors import UserError


def fail(message: str) -> None:
  """Ends the process with status 2 after one line on stderr."""
  print(f'error: {" ".join(str(message).split())}', file=sys.stderr)
  sys.exit(2)


def run(main: Callable[[], int | None]) -> None:
  """Calls `main` and exits with its status; a `UserError` prints one line and exits with 2."""
  _keep_what_is_compiled()
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


def _keep_what_is_compiled() -> None:
  """Programs that took a tenth of a second to compile are kept for the next time: JAX's persistent compilation cache.

  JAX_COMPILATION_CACHE_DIR names another folder, JAX_ENABLE_COMPILATION_CACHE=false switches it off.
  """
  jax = sys.modules.get('jax')  # some commands do without
  if jax is None or jax.config.jax_compilation_cache_dir:
    return
  cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'ditsam_jax' / 'compiled'
  try:
    cache.mkdir(parents=True, exist_ok=True)
  except OSError:  # a home that cannot be written to
    return
  jax.config.update('jax_compilation_cache_dir', str(cache))
  jax.config.update(
    'jax_persistent_cache_min_compile_time_secs', 0.1
  )  # a second by default: those of small models count
  jax.config.update('jax_compilation_cache_max_size', 10 * 2**30)  # bytes; the longest unused go first
