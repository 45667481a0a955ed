"""Programs compile quickly, and those of one test, or of a process that it starts, are there for the next."""

import atexit
import os
import shutil
import signal
import tempfile

import pytest

# Set before JAX is imported. Most tests compare our programs with each other and spend their time compiling, so LLVM
# need not optimise. Set it to 0 to run every test with the programs that users get.
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.3')
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(prefix='ditsam_jax-compiled-')
  atexit.register(shutil.rmtree, os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True)

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # in a shell's background job; subprocesses would inherit it
  signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def compiled_as_for_users(request):
  """Optimises fully, as for users, in tests that compare with independent sources."""
  if request.node.get_closest_marker('verifies') is None:
    yield
    return
  import jax

  before = jax.config.read('jax_disable_most_optimizations')
  jax.config.update('jax_disable_most_optimizations', False)
  yield
  jax.config.update('jax_disable_most_optimizations', before)
