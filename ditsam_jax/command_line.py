"""Shared by all commands: errors in the input and signals give one line and an exit status."""

import gc
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import NoReturn

from ditsam_jax import interruption
from ditsam_jax.errors import LONGEST, UserError
from ditsam_jax.terminal import printable

TRACEBACK = 'DITSAM_TRACEBACK'  # environment variable; 1 shows tracebacks and the messages of libraries
_EXTRA_OF = {  # the extra that installs an optional package
  **dict.fromkeys(('array_record', 'grain', 'ml_collections', 'optax', 'tensorboardX', 'tensorflow_datasets'), 'train'),
  **dict.fromkeys(('segment_anything', 'torch', 'transformers'), 'convert'),
  **dict.fromkeys(('huggingface_hub', 'safetensors'), 'hub'),
  'flatbuffers': 'stablehlo',
  **dict.fromkeys(('onnx', 'onnx_ir', 'onnxruntime', 'onnxscript'), 'onnx'),
  **dict.fromkeys(('h11', 'multipart', 'prometheus_client', 'python_multipart', 'starlette', 'uvicorn'), 'serve'),
}
_QUIET = {  # silences messages of libraries that users cannot act on
  'TF_CPP_MIN_LOG_LEVEL': '3',
  'GRPC_VERBOSITY': 'ERROR',
  'ABSL_MIN_LOG_LEVEL': '3',
  'TRANSFORMERS_VERBOSITY': 'error',
  'PYTHONWARNINGS': 'ignore',  # in worker processes
  'TRANSFORMERS_NO_ADVISORY_WARNINGS': '1',
}


def begin() -> None:
  """Makes Ctrl-C and SIGTERM end this process with one line, and silences libraries.

  `python -m ditsam_jax.COMMAND` calls it before importing anything else (ditsam_jax/__init__.py); scripts that are run
  by path must call it first.
  """
  interruption.begin()
  gc.set_threshold(max(5_000, gc.get_threshold()[0]))  # imports and tracing make many objects and little garbage
  if not _shows_all():
    for name, value in _QUIET.items():
      os.environ.setdefault(name, value)
    _silence_python()
    sys.excepthook = _explain_missing_extra


def fail(message: str) -> NoReturn:
  """Prints one line to stderr and exits with status 2."""
  _print_error(message)
  sys.exit(2)


def _print_error(message: str) -> None:
  print(f'error: {printable(" ".join(message.split()), longest=LONGEST)}', file=sys.stderr)


def run(main: Callable[[], int | None], *, on_cpu: bool = False) -> NoReturn:
  """Calls `main` and exits with its status. Errors that users can fix exit with 2, signals with 130 or 143.

  Both print one line first. Bugs exit with 1 and a traceback; DITSAM_TRACEBACK=1 shows the traceback of any error.
  With `on_cpu`, JAX leaves accelerators alone, which a training run may be using.
  """
  begin()
  gc.freeze()  # collections skip what imports made
  if on_cpu:
    import jax

    jax.config.update('jax_platforms', 'cpu')
  _cache_compiled_programs()
  _configure_streams()
  if not _shows_all():
    _silence_python()  # again, because libraries set filters when they are imported
  error, status = None, 0
  try:
    interruption.work_begins()
    status = main() or 0
  except SystemExit:  # --help, invalid flags
    raise
  except KeyboardInterrupt as interrupt:
    status = 143 if isinstance(interrupt, interruption.Terminated) else 130
    if not interruption.work_ends():  # a training run has handled the signal and saved
      print('interrupted', file=sys.stderr)
  except BaseException as raised:
    error = raised
  number = interruption.work_ends()
  if error is not None and _shows_all():
    traceback.print_exception(error)
  if number is not None:  # the signal takes precedence over errors that it caused
    interruption.end_process(interruption.status(number))
  sys.exit(status if error is None else explain(error))


def explain(error: BaseException) -> int:
  """Prints one line for errors that users can fix, and a traceback for others; returns the exit status."""
  if isinstance(error, BrokenPipeError):  # the reader of our output is gone
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141
  if (message := _message(error)) is not None:
    _print_error(message)
    return 2
  if not _shows_all():
    traceback.print_exception(error)
  return 1


def _message(error: BaseException) -> str | None:
  """Describes an error that users can fix; None for others."""
  match error:
    case UserError():
      return str(error)
    case ModuleNotFoundError():
      return _missing_extra(error)
    case PermissionError(filename=str() | bytes() | os.PathLike() as name):
      return f'{printable(os.fsdecode(name))}: {error.strerror}; choose another place, or change its permissions'
    case OSError(errno=int()):  # a system error; libraries raise OSError without errno
      name = error.filename if error.filename2 is None else error.filename2
      where = f'{printable(os.fsdecode(name))}: ' if isinstance(name, str | bytes | os.PathLike) else ''
      return f'{where}{error.strerror or error}'
    case MemoryError():
      return f'there is not enough memory{f" ({error})" if str(error) else ""}; use smaller images, batches or models'
    case RecursionError():
      return f'something in the input is nested too deeply; {TRACEBACK}=1 shows where'
    case _ if 'RESOURCE_EXHAUSTED' in str(error):  # from XLA
      return f'the device is out of memory ({str(error).strip()[:200]}); use a smaller batch, or more devices'
  return None


def _missing_extra(error: BaseException) -> str | None:
  """Returns a message with the extra to install if an optional package is missing, else None."""
  if not isinstance(error, ModuleNotFoundError):
    return None
  extra = _EXTRA_OF.get((error.name or '').partition('.')[0])
  return extra and f"{error.name} is not installed; this needs the extra '{extra}': pip install 'ditsam_jax[{extra}]'"


def _explain_missing_extra(kind: type[BaseException], error: BaseException, trace) -> None:
  """sys.excepthook for errors raised before `run`, by a command's imports."""
  if message := _missing_extra(error):
    print(f'error: {message}', file=sys.stderr, flush=True)
    os._exit(2)
  sys.__excepthook__(kind, error, trace)


def _shows_all() -> bool:
  return os.environ.get(TRACEBACK, '') not in ('', '0')


def _silence_python() -> None:
  """Hides warnings of libraries; this package prints what users need to know."""
  warnings.simplefilter('ignore')
  logging.disable(logging.CRITICAL)


def _configure_streams() -> None:
  """Makes printing independent of the terminal's encoding, and line-buffered in pipes."""
  for stream in (sys.stdout, sys.stderr):
    if reconfigure := getattr(stream, 'reconfigure', None):
      reconfigure(errors='backslashreplace', line_buffering=True)


def _cache_compiled_programs() -> None:
  """Enables JAX's persistent compilation cache for programs that take at least 0.1 s to compile.

  JAX_COMPILATION_CACHE_DIR changes the folder; JAX_ENABLE_COMPILATION_CACHE=false disables the cache.
  """
  jax = sys.modules.get('jax')  # some commands do not import it
  if jax is None or jax.config.jax_compilation_cache_dir:
    return
  from ditsam_jax.storage.paths import cache_folder  # late, because `begin` must come before slow imports

  try:
    cache = cache_folder() / 'compiled'
    cache.mkdir(parents=True, exist_ok=True)
  except (OSError, UserError):  # no home folder, or not writable
    return
  jax.config.update('jax_compilation_cache_dir', str(cache))
  # The default of 1 s would exclude most programs of small models.
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
  jax.config.update('jax_compilation_cache_max_size', 10 * 2**30)  # bytes; evicts the least recently used
