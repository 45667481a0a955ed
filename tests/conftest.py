"""Programs compile quickly, and each compiled program is kept: for other tests, for processes, and for the next run."""

import gc
import os
import signal
import sys

import pytest

from benchmarks import chromium

# Set before JAX is imported. Most tests compare our programs with each other and spend their time compiling, so LLVM
# need not optimise. Set it to 0 to run every test with the programs that users get.
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')  # small programs add up

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # in a shell's background job; subprocesses would inherit it
  signal.signal(signal.SIGINT, signal.default_int_handler)


gc.set_threshold(50_000, 20, 20)  # tracing makes many objects and little garbage: collections took a sixth of the time


# Modules with tests that take a minute or so; then come the others that start processes.
LONGEST = (
  'test_train_hosts.py',
  'test_kills.py',
  'test_bucket_runs.py',
  'test_bucket_commands.py',
  'test_train.py',
  'test_fuzz.py',
)


def pytest_configure(config):
  """Compiled programs go into pytest's own cache, which `pytest --cache-clear` empties."""
  cache = os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(config.cache.mkdir('compiled')))
  # If pytest was given a folder whose conftest.py imports JAX, JAX has already read the environment.
  if jax := sys.modules.get('jax'):
    jax.config.update('jax_compilation_cache_dir', cache)
  config.pluginmanager.register(NamesFailures(config))


class NamesFailures:
  """Names each test as it fails: a run that is stopped before its summary would only show an F."""

  def __init__(self, config):
    self._config = config

  def pytest_runtest_logreport(self, report):
    reporter = self._config.pluginmanager.get_plugin('terminalreporter')
    if report.failed and reporter is not None:  # worker processes have none
      reporter.write_line(f'\nfailed after {report.duration:.0f} s: {report.nodeid}')


def pytest_collection_modifyitems(items):
  """Starts with the modules whose tests take longest, which should not be left for the end."""
  first = {item.path for item in items if item.get_closest_marker('multiprocess')}
  order = {name: place for place, name in enumerate(LONGEST)}
  items.sort(key=lambda item: (order.get(item.path.name, len(LONGEST)), item.path not in first))


def pytest_collection_finish():
  """Garbage collections skip the modules that are imported by now."""
  gc.collect()
  gc.freeze()


@pytest.fixture(autouse=True)
def signals_are_left_alone():
  """Fails a test that leaves signal handlers, which would end the process in a later test."""

  def handlers():
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

  before = handlers()
  yield
  assert handlers() == before


@pytest.fixture(autouse=True)
def compiled_as_for_users(request):
  """Optimises fully, as for users, in tests that compare with independent sources or compute for long."""
  if not any(map(request.node.get_closest_marker, ('verifies', 'optimised'))):
    yield
    return
  import jax

  before = jax.config.read('jax_disable_most_optimizations')
  jax.config.update('jax_disable_most_optimizations', False)
  yield
  jax.config.update('jax_disable_most_optimizations', before)


@pytest.fixture(scope='module')
def browser():
  """Chromium. There is one definition, and one browser at a time: playwright runs one event loop in a thread."""
  playwright = pytest.importorskip('playwright.sync_api', reason="needs the extra 'test'")
  playwright.expect.set_options(timeout=60_000)  # programs are compiled on first use
  with playwright.sync_playwright() as found:
    running = chromium.launched(found) or pytest.skip('there is no Chromium; .ci/install_browser installs it')
    yield running
    running.close()
