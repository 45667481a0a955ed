"""Stops training at the end of a step, on SIGTERM (preemption) or Ctrl-C."""

import contextlib
import os
import signal
from collections.abc import Callable

import jax
from jax.experimental import multihost_utils

from ditsam_jax import interruption


class Stopped(Exception):
  """Raised to end the work after a signal."""


class StopSignal:
  """After the first step, SIGTERM or Ctrl-C requests a stop; a second Ctrl-C ends the process at once.

  Before, when there is nothing to save, both end at once. SIGTERM again changes nothing: schedulers send it to a
  process and to its group.
  """

  def __init__(self):
    self.number: int | None = None  # of the signal
    self._told: int | None = None  # the signal, before all hosts know
    self._stepping = False
    self._questions = 0
    self._meanwhile = contextlib.ExitStack()

  @property
  def asked(self) -> bool:
    return self.number is not None

  def __enter__(self) -> 'StopSignal':
    # Of several hosts JAX takes SIGTERM, to agree on the step with the others.
    numbers = (signal.SIGINT, signal.SIGTERM)[: 1 if jax.process_count() > 1 else 2]
    self._meanwhile.enter_context(interruption.deferred(self._take, numbers))
    return self

  def __exit__(self, *exception):
    self._meanwhile.close()

  def agreed(self) -> bool:
    """Whether to stop here. All hosts must ask equally often, and all get the same answer at the same question."""
    self._questions += 1  # JAX fixes the number of the question at which all hosts hear of a signal
    if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(self._questions):
      self.number = self._told or signal.SIGTERM
    return self.asked

  def steps_begin(self) -> None:
    """From now on a signal finishes the step and saves."""
    self._stepping = True

  def interruptible(self, function: Callable) -> Callable:
    """The function, which raises Stopped instead of beginning when a stop is asked for; see `agreed`."""

    def call(*arguments):
      if self.agreed():
        raise Stopped
      return function(*arguments)

    return call

  def _take(self, number: int) -> bool:
    """Whether a signal is taken for a request to stop; see `interruption.deferred`."""
    again = self.asked or self._told is not None
    if not self._stepping or number == signal.SIGINT and again:
      return False
    if again:
      return True
    if jax.process_count() > 1:
      self._told = number
      os.kill(os.getpid(), signal.SIGTERM)
    else:
      self.number = number
    told = (
      'stopping after this step; press Ctrl-C again to stop at once and lose unsaved work'
      if number == signal.SIGINT
      else 'received SIGTERM: saving after this step'
    )
    with contextlib.suppress(OSError):
      os.write(2, f'{told}\n'.encode())  # `print` cannot be interrupted by another `print`
    return True
