"""Stopping at the end of a step: for preemption (SIGTERM) and for people (Ctrl-C)."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import multihost_utils


class Stopped(Exception):
  """The work was left off, since a signal asked for it."""


class StopSignal:
  """Once there are steps, turns SIGTERM or the first Ctrl-C into a request to stop; the next Ctrl-C ends at once.

  Before, when there is nothing to save, both end at once, SIGTERM with status 0. SIGTERM again changes nothing:
  schedulers send it to a process and to its group.
  """

  def __init__(self):
    self.number: int | None = None  # of the signal
    self._told: int | None = None  # the signal, before all hosts know
    self._stepping = False
    self._before: dict[int, Any] = {}

  @property
  def asked(self) -> bool:
    return self.number is not None

  def __enter__(self) -> 'StopSignal':
    # Of several hosts JAX takes SIGTERM, to agree on the step with the others.
    for number in (signal.SIGINT, signal.SIGTERM)[: 1 if jax.process_count() > 1 else 2]:
      self._before[number] = signal.signal(number, self._ask)
    return self

  def __exit__(self, *exception):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def agreed(self, step: int) -> bool:
    """Whether to stop at this step; to be asked after every step, and the same on all hosts once one was signalled."""
    if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
      self.number = self._told or signal.SIGTERM
    return self.asked

  def steps_begin(self) -> None:
    """From now on steps are finished and saved."""
    self._stepping = True

  def interruptible(self, function: Callable) -> Callable:
    """The function, which raises Stopped instead of beginning when a stop is asked for."""

    def call(*arguments):
      if self.asked:
        raise Stopped
      return function(*arguments)

    return call

  def _ask(self, number, frame):
    if number == signal.SIGINT and (self.asked or self._told or not self._stepping):
      raise KeyboardInterrupt
    if not self._stepping:
      sys.exit(0)
    if self.asked or self._told:
      return
    if jax.process_count() > 1:
      self._told = number
      os.kill(os.getpid(), signal.SIGTERM)
    else:
      self.number = number
    told = (
      'stopping after this step; press Ctrl-C again to stop at once and lose what is not saved'
      if number == signal.SIGINT
      else 'asked to stop (SIGTERM): saving after this step'
    )
    os.write(sys.__stderr__.fileno(), f'{told}\n'.encode())  # `print` cannot be interrupted by another `print`
