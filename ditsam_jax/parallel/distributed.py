"""Connects several hosts into one run."""

import argparse
import json
import os
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from ditsam_jax.errors import UserError
from ditsam_jax.terminal import say

T = TypeVar('T')

HEARTBEAT = 50  # seconds without a sign of life after which JAX takes a host for dead; watch.py is there before
# How the environment tells of several processes; JAX reads the rest of it (who is first, which one this is).
_COUNTS = ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE')


def add_flags(parser: argparse.ArgumentParser) -> None:
  """--coordinator, --hosts and --host."""
  group = parser.add_argument_group('several hosts', 'detected automatically under SLURM and Open MPI')
  group.add_argument('--coordinator', metavar='HOST:PORT', help='address of the first host')
  group.add_argument('--hosts', metavar='N', help="number of hosts, or 'pod' on each host of a TPU pod slice")
  group.add_argument('--host', type=int, metavar='I', help='index of this host, from 0')


def initialise(options: argparse.Namespace, *, preemptible: bool = False) -> None:
  """Joins the hosts that flags or the environment tell of; to be called before JAX does anything.

  Args:
    options: of `add_flags`.
    preemptible: JAX takes SIGTERM, and all hosts agree where to stop (`StopSignal`). Otherwise it ends this process.

  Raises:
    UserError: flags that do not go together, or hosts that do not meet.
  """
  jax.config.update('jax_enable_preemption_service', preemptible)
  told = options.coordinator, options.hosts, options.host
  if options.hosts == 'pod' and told[::2] == (None, None) or told == (None, None, None) and _announced() > 1:
    _join()
  elif told != (None, None, None):
    if None in told or not options.hosts.isdecimal() or not 0 <= options.host < int(options.hosts):
      raise UserError(
        f'--coordinator={options.coordinator} --hosts={options.hosts} --host={options.host}: expected all '
        f'three, --host from 0 to below --hosts, or none of them, or --hosts=pod alone'
      )
    _join(coordinator_address=options.coordinator, num_processes=int(options.hosts), process_id=options.host)


def is_first() -> bool:
  """Whether this host writes files and messages."""
  return jax.process_index() == 0


def place() -> tuple[int, int]:
  """Index of this host, from 0, and the number of hosts."""
  return jax.process_index(), jax.process_count()


def wait_for_all(name: str) -> None:
  """Waits until all hosts have come here; one alone waits for nobody."""
  multihost_utils.sync_global_devices(name)


def tell(text: str) -> None:
  """A line on stderr, of the first host alone."""
  if is_first():
    say(text)


def on_any_host(condition: bool) -> bool:
  """Whether something is so on at least one host. All hosts must call it."""
  return (
    condition if jax.process_count() == 1 else bool(np.any(multihost_utils.process_allgather(np.asarray(condition))))
  )


def first_alone_first(function: Callable[[], T], name: str) -> T:
  """Calls a function on all hosts, but on the first one before the others: what it makes, they find."""
  if not is_first():
    wait_for_all(name)
    return function()
  made = function()
  wait_for_all(name)
  return made


def gathered(rows: list[Any]) -> list[Any]:
  """The rows of all hosts, in the order of the hosts, on every host; rows are what JSON can hold.

  All hosts must call it, and each may bring another number of rows. Integers of any size and floats come back
  as they were.
  """
  if jax.process_count() == 1:
    return rows
  told = np.frombuffer(json.dumps(rows).encode(), np.uint8)
  # Arrays of one size are all that can be exchanged.
  sizes = multihost_utils.process_allgather(np.array([told.size], np.int32)).ravel()
  padded = np.zeros(sizes.max(), np.uint8)
  padded[: told.size] = told
  everything = multihost_utils.process_allgather(padded).reshape(len(sizes), -1)
  return [row for size, part in zip(sizes, everything) for row in json.loads(part[:size].tobytes())]


def _announced() -> int:
  """Processes that the environment tells of."""
  return max(int(os.environ.get(name, '1')) for name in _COUNTS)


def _join(**arguments) -> None:
  try:
    jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=HEARTBEAT)
  except (RuntimeError, ValueError) as error:
    reason = str(error).strip().split('\n')[0][:200]
    raise UserError(
      f'the hosts of this run could not connect ({reason}); start the same command on all of them, with one '
      f'--coordinator that all can reach'
    ) from error
