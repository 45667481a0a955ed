"""Programs compiled by one test, or by a process that it starts, are there for the next: JAX's persistent cache."""

import atexit
import os
import shutil
import signal
import tempfile

if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:  # before JAX is imported
  os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(prefix='ditsam_jax-compiled-')
  atexit.register(shutil.rmtree, os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.3')

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell's background job; what tests start would inherit it
  signal.signal(signal.SIGINT, signal.default_int_handler)
