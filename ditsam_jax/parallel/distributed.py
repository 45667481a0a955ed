"""Connects several hosts into one run; what they tell each other."""

import argparse
import json
import os
import re
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from ditsam_jax.errors import UserError
from ditsam_jax.terminal import printable, say

T = TypeVar('T')

HEARTBEAT = 50  # seconds without a heartbeat after which JAX considers a host dead; watch.py is usually faster
# Environment variables with the number of processes; JAX reads the rest (coordinator, process index).
_COUNTS = ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE')
_ADDRESS = re.compile(r'(\[[^\[\]\s]+\]|[^\[\]:/\s]+):([0-9]{1,5})')  # an IPv6 address is in brackets


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds --coordinator, --hosts and --host."""
  group = parser.add_argument_group('several hosts', 'detected automatically under SLURM and Open MPI')
  group.add_argument('--coordinator', metavar='HOST:PORT', help='address of the first host')
  group.add_argument('--hosts', metavar='N', help="number of hosts, or 'pod' on each host of a TPU pod slice")
  group.add_argument('--host', type=int, metavar='I', help='index of this host, from 0')


def initialise(options: argparse.Namespace, *, preemptible: bool = False) -> None:
  """Connects to the other hosts given by flags or the environment. Must be called before JAX is used.

  Args:
    options: the parsed flags of `add_flags`.
    preemptible: let JAX handle SIGTERM, so that all hosts agree where to stop (`StopSignal`). Otherwise SIGTERM ends
      this process.

  Raises:
    UserError: the flags are inconsistent, or the hosts cannot connect.
  """
  jax.config.update('jax_enable_preemption_service', preemptible)
  flags = options.coordinator, options.hosts, options.host
  if options.hosts == 'pod' and flags[::2] == (None, None) or flags == (None, None, None) and _process_count() > 1:
    _join()
  elif flags != (None, None, None):
    if None in flags or not options.hosts.isdecimal() or not 0 <= options.host < int(options.hosts):
      raise UserError(
        f'--coordinator={options.coordinator} --hosts={options.hosts} --host={options.host}: expected all '
        f'three, with --host from 0 to --hosts - 1, or none of them, or --hosts=pod alone'
      )
    address = _ADDRESS.fullmatch(options.coordinator)
    if address is None or not 0 < int(address[2]) < 2**16:
      given = printable(options.coordinator)
      raise UserError(f'--coordinator={given}: expected HOST:PORT, such as node1:1234')
    _join(coordinator_address=options.coordinator, num_processes=int(options.hosts), process_id=options.host)


def is_first() -> bool:
  """Whether this is the host that writes files and messages."""
  return jax.process_index() == 0


def place() -> tuple[int, int]:
  """Returns the index of this host, from 0, and the number of hosts."""
  return jax.process_index(), jax.process_count()


def alone() -> bool:
  """Whether this is the only host."""
  return jax.process_count() == 1


def wait_for_all(name: str) -> None:
  """A barrier: waits until all hosts have called it."""
  multihost_utils.sync_global_devices(name)


def tell(text: str) -> None:
  """Prints a line to stderr, on the first host only."""
  if is_first():
    say(text)


def on_any_host(condition: bool) -> bool:
  """Whether a condition holds on at least one host. All hosts must call it."""
  return condition if alone() else bool(np.any(multihost_utils.process_allgather(np.asarray(condition))))


def from_first(array: np.ndarray) -> np.ndarray:
  """Returns the first host's array on every host. All hosts must call it, with arrays of the same shape and type."""
  return multihost_utils.broadcast_one_to_all(array)


def preempted(sync_point: int) -> bool:
  """Whether JAX has received SIGTERM on some host and has chosen this sync point for all hosts to learn of it.

  All hosts must call it with the same numbers, and `initialise` must have been called with `preemptible`.
  """
  return not alone() and multihost_utils.reached_preemption_sync_point(sync_point)


def first_alone_first(function: Callable[[], T], name: str) -> T:
  """Calls a function on the first host, then on the others, which can use the files it has written."""
  if not is_first():
    wait_for_all(name)
    return function()
  result = function()
  wait_for_all(name)
  return result


def gathered(rows: list[Any]) -> list[Any]:
  """Gathers the rows (JSON values) of all hosts, in host order, on every host.

  All hosts must call it; the number of rows may differ. Integers of any size and floats are preserved exactly.
  """
  if alone():
    return rows
  encoded = np.frombuffer(json.dumps(rows).encode(), np.uint8)
  # All hosts must contribute arrays of the same size.
  sizes = multihost_utils.process_allgather(np.array([encoded.size], np.int32)).ravel()
  padded = np.zeros(sizes.max(), np.uint8)
  padded[: encoded.size] = encoded
  everything = multihost_utils.process_allgather(padded).reshape(len(sizes), -1)
  return [row for size, part in zip(sizes, everything) for row in json.loads(part[:size].tobytes())]


def gathered_array(array: jax.Array | np.ndarray) -> np.ndarray:
  """Returns all values of an array. If it is sharded over hosts, all hosts must call it."""
  if isinstance(array, jax.Array) and not array.is_fully_addressable:
    return multihost_utils.process_allgather(array, tiled=True)
  return np.asarray(array)


def _process_count() -> int:
  """Number of processes according to the environment."""
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
