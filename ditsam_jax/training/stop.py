"""Stops training after the current step, on SIGTERM (preemption) or Ctrl-C."""

import contextlib
import os
import signal
from collections.abc import Callable

from ditsam_jax import interruption
from ditsam_jax.parallel import distributed


class Stopped(Exception):
  """Raised to stop after a signal."""


class StopSignal:
  """After the first step, SIGTERM or Ctrl-C requests a stop; a second Ctrl-C ends the process at once.

  Before the first step, when there is nothing to save, both end the process at once. A repeated SIGTERM is ignored,
  because schedulers send it both to a process and to its group.
  """

  def __init__(self):
    self.number: int | None = None  # the signal
    self._pending: int | None = None  # a signal that the other hosts do not know of yet
    self._stepping = False
    self._sync_point = 0
    self._handlers = contextlib.ExitStack()

  @property
  def asked(self) -> bool:
    return self.number is not None

  def __enter__(self) -> 'StopSignal':
    # With several hosts, JAX handles SIGTERM, so that all hosts agree on the step.
    numbers = (signal.SIGINT, signal.SIGTERM)[: 2 if distributed.alone() else 1]
    self._handlers.enter_context(interruption.deferred(self._handle, numbers))
    return self

  def __exit__(self, *exception):
    self._handlers.close()

  def agreed(self) -> bool:
    """Whether to stop here. All hosts must call it equally often; the n-th call returns the same on all hosts."""
    self._sync_point += 1  # JAX chooses the sync point at which all hosts learn of a signal
    if distributed.preempted(self._sync_point):
      self.number = self._pending or signal.SIGTERM
    return self.asked

  def steps_begin(self) -> None:
    """From now on, a signal finishes the current step and saves."""
    self._stepping = True

  def interruptible(self, function: Callable) -> Callable:
    """Wraps a function to raise Stopped instead of starting if a stop was requested, see `agreed`."""

    def call(*arguments):
      if self.agreed():
        raise Stopped
      return function(*arguments)

    return call

  def _handle(self, number: int) -> bool:
    """Handles a signal; returns False if it should end the process instead, see `interruption.deferred`."""
    again = self.asked or self._pending is not None
    if not self._stepping or number == signal.SIGINT and again:
      return False
    if again:
      return True
    if distributed.alone():
      self.number = number
    else:
      self._pending = number
      os.kill(os.getpid(), signal.SIGTERM)
    message = (
      'stopping after this step; press Ctrl-C again to stop at once and lose unsaved work'
      if number == signal.SIGINT
      else 'received SIGTERM: saving after this step'
    )
    with contextlib.suppress(OSError):
      os.write(2, f'{message}\n'.encode())  # `print` is not reentrant
    return True
