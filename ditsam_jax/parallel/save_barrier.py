"""A barrier for joint checkpoints that reports a failed host within a minute.

Orbax's hosts wait for each other after writing: without this, for 20 minutes if one has failed. Here, a failed host
also joins the first barrier. Only successful hosts join the second, so a failure shows within 30 s.
"""

from collections.abc import Callable
from typing import Any

import orbax.checkpoint as ocp

_SUCCEEDED = 30_000  # ms, from the first barrier to the second
_ENDED = 20 * 60_000  # ms, Orbax's own limit for a save


class SaveBarrier:
  """The barrier of `ocp.AsyncOptions`, which Orbax's background thread calls several times in a save."""

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
    self._all_know = True  # if the wait raises, the other hosts already know
    self._wait(key=f'{point}.ended', timeout_ms=timeout_ms)
    try:
      self._wait(key=f'{point}.succeeded', timeout_ms=min(timeout_ms, _SUCCEEDED))
    except Exception as error:  # JAX's, after the timeout
      raise RuntimeError('another host could not write its part') from error
    self._all_know = False

  def give_up(self) -> None:
    """Called after a failure in a save: joins the barrier at which the others wait, unless they already know."""
    if not self._all_know:
      self._wait(key=f'{self._save}.{self._point}.ended', timeout_ms=_ENDED)
