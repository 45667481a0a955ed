"""Shared by all commands: bad input ends with one clear line and exit status 2, signals with one line."""

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from ditsam_jax import interruption
from ditsam_jax.errors import LONGEST, UserError
from ditsam_jax.terminal import printable

TRACEBACK = 'DITSAM_TRACEBACK'  # =1 in the environment shows where an error comes from, and what libraries say
_EXTRA_OF = {  # what an optional package comes with
  **dict.fromkeys(('array_record', 'grain', 'ml_collections', 'optax', 'tensorboardX', 'tensorflow_datasets'), 'train'),
  **dict.fromkeys(('safetensors', 'segment_anything', 'torch', 'transformers'), 'convert'),
  **dict.fromkeys(('h11', 'multipart', 'prometheus_client', 'python_multipart', 'starlette', 'uvicorn'), 'serve'),
}
_QUIET = {  # what libraries say of themselves, and what a person cannot act on
  'TF_CPP_MIN_LOG_LEVEL': '3',
  'GRPC_VERBOSITY': 'ERROR',
  'ABSL_MIN_LOG_LEVEL': '3',
  'TRANSFORMERS_VERBOSITY': 'error',
  'PYTHONWARNINGS': 'ignore',  # worker processes'
  'TRANSFORMERS_NO_ADVISORY_WARNINGS': '1',
}


def begin() -> None:
  """Makes Ctrl-C and SIGTERM end this process with one line, and silences libraries.

  `python -m ditsam_jax.COMMAND` does this before it imports anything else (ditsam_jax/__init__.py); scripts that are
  started by their path call it first.
  """
  interruption.begin()
  if not _shows_all():
    for name, value in _QUIET.items():
      os.environ.setdefault(name, value)
    _silence_python()
    sys.excepthook = _explain_missing_extra


def fail(message: str) -> NoReturn:
  """Ends the process with status 2 after one line on stderr."""
  print(f'error: {printable(" ".join(str(message).split()), longest=LONGEST)}', file=sys.stderr)
  sys.exit(2)


def run(main: Callable[[], int | None]) -> NoReturn:
  """Calls `main` and exits with its status, or after one line: 2 for what a user can mend, 130 or 143 after a signal.

  A defect of ours exits with 1 and keeps its traceback; DITSAM_TRACEBACK=1 shows that of any error.
  """
  begin()
  _keep_what_is_compiled()
  _take_any_text()
  if not _shows_all():
    _silence_python()  # again: libraries set filters of their own when they are imported
  error, status = None, 0
  try:
    interruption.work_begins()
    status = main() or 0
  except SystemExit:  # --help, wrong flags
    raise
  except KeyboardInterrupt as interrupt:
    status = 143 if isinstance(interrupt, interruption.Terminated) else 130
    if not interruption.work_ends():  # a training run has taken the signal, and saved
      print('interrupted', file=sys.stderr)
  except BaseException as raised:
    error = raised
  number = interruption.work_ends()
  if error is not None and _shows_all():
    traceback.print_exception(error)
  if number is not None:  # whatever else came of it
    interruption.end_process(number)
  if error is not None:
    _explain(error)
  sys.exit(status)


def _explain(error: BaseException) -> NoReturn:
  """One line for errors that the user can fix; a traceback for the rest."""
  match error:
    case UserError():
      fail(str(error))
    case ModuleNotFoundError() if message := _missing_extra(error):
      fail(message)
    case BrokenPipeError():  # whoever read our output has gone; nothing can be said to them
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
      sys.exit(141)
    case PermissionError(filename=str() | bytes() | os.PathLike() as name):
      fail(f'{printable(os.fsdecode(name))}: {error.strerror}; choose another place, or change its permissions')
    case OSError(errno=int()):  # of the system; without a number it is a library's own
      name = error.filename if error.filename2 is None else error.filename2
      where = f'{printable(os.fsdecode(name))}: ' if isinstance(name, str | bytes | os.PathLike) else ''
      fail(f'{where}{error.strerror or error}')
    case MemoryError():
      fail(f'there is not enough memory{f" ({error})" if str(error) else ""}; use smaller images, batches or models')
    case RecursionError():
      fail(f'something in the input is nested too deeply; {TRACEBACK}=1 shows where')
    case _ if 'RESOURCE_EXHAUSTED' in str(error):  # XLA's
      fail(f'the device is out of memory ({str(error).strip()[:200]}); use a smaller batch, or more devices')
  if not _shows_all():
    traceback.print_exception(error)
  sys.exit(1)


def _missing_extra(error: BaseException) -> str | None:
  """What to install if an optional package is missing."""
  if not isinstance(error, ModuleNotFoundError):
    return None
  extra = _EXTRA_OF.get((error.name or '').partition('.')[0])
  return extra and f"{error.name} is not installed; this needs the extra '{extra}': pip install 'ditsam_jax[{extra}]'"


def _explain_missing_extra(kind: type[BaseException], error: BaseException, trace) -> None:
  """Hook for what is raised before `run`: by a command's imports."""
  if message := _missing_extra(error):
    print(f'error: {message}', file=sys.stderr, flush=True)
    os._exit(2)
  sys.__excepthook__(kind, error, trace)


def _shows_all() -> bool:
  return os.environ.get(TRACEBACK, '') not in ('', '0')


def _silence_python() -> None:
  """Hides warnings of libraries: this package prints what users need to know."""
  warnings.simplefilter('ignore')
  logging.disable(logging.CRITICAL)


def _take_any_text() -> None:
  """Makes printing independent of the terminal's encoding, and line-buffered in pipes."""
  for stream in (sys.stdout, sys.stderr):
    if reconfigure := getattr(stream, 'reconfigure', None):
      reconfigure(errors='backslashreplace', line_buffering=True)


def _keep_what_is_compiled() -> None:
  """Programs that took a tenth of a second to compile are kept for the next time: JAX's persistent compilation cache.

  JAX_COMPILATION_CACHE_DIR names another folder, JAX_ENABLE_COMPILATION_CACHE=false switches it off.
  """
  jax = sys.modules.get('jax')  # some commands do without
  if jax is None or jax.config.jax_compilation_cache_dir:
    return
  try:
    cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'ditsam_jax' / 'compiled'
    cache.mkdir(parents=True, exist_ok=True)
  except (OSError, RuntimeError):  # a home that cannot be written to, or none
    return
  jax.config.update('jax_compilation_cache_dir', str(cache))
  jax.config.update(
    'jax_persistent_cache_min_compile_time_secs', 0.1
  )  # a second by default: those of small models count
  jax.config.update('jax_compilation_cache_max_size', 10 * 2**30)  # bytes; the longest unused go first
