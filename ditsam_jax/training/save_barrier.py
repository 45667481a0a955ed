"""Lets hosts that save a checkpoint together learn within a minute that one of them failed.

Orbax' hosts wait for each other after writing, and a host that failed does not come: the others would wait for 20 minutes.
Here it comes too, to a first barrier for all that have ended. A second one, for those that succeeded, then has nothing to
wait for but the messages of the hosts.
"""

from collections.abc import Callable
from typing import Any

import orbax.checkpoint as ocp

_SUCCEEDED = 30_000  # ms, from the first barrier to the second
_ENDED = 20 * 60_000  # ms, Orbax' own limit for a save


class SaveBarrier:
  """The barrier of `ocp.AsyncOptions`, which Orbax' background thread calls several times in a save."""

  def __init__(self):
    self._wait: Callable[..., Any] = ocp.multihost.get_barrier_sync_fn()  # does nothing with one host
    self._save, self._point, self._all_know = '', 0, False

  def begin(self, save: str) -> None:
    """Starts a save. `save` must be the same on all hosts, and never the same twice."""
    self._save, self._point, self._all_know = save, 0, False

  def __call__(self, *, key: str, timeout_ms: int) -> None:
    """Waits for all hosts. Raises RuntimeError if one has failed."""
    del key
    point = f'{self._save}.{self._point}'
    self._point += 1
    self._all_know = True  # that this host did not come, if it does not come back from here
    self._wait(key=f'{point}.ended', timeout_ms=timeout_ms)
    try:
      self._wait(key=f'{point}.succeeded', timeout_ms=min(timeout_ms, _SUCCEEDED))
    except Exception as error:  # of JAX, after the time above
      raise RuntimeError('another host could not write its part') from error
    self._all_know = False

  def give_up(self) -> None:
    """Called after a failure in a save: comes to where the others wait, or does nothing if they know."""
    if not self._all_know:
      self._wait(key=f'{self._save}.{self._point}.ended', timeout_ms=_ENDED)
