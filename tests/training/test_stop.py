"""Signals stop training at the right moment."""

import os
import signal

import pytest

from ditsam_jax.interruption import Terminated
from ditsam_jax.training.stop import Stopped, StopSignal


def send(number):
  os.kill(os.getpid(), number)


def test_before_the_first_step_signals_end_the_process():
  with StopSignal():
    with pytest.raises(KeyboardInterrupt):
      send(signal.SIGINT)
    with pytest.raises(Terminated):
      send(signal.SIGTERM)


@pytest.mark.parametrize('first', [signal.SIGINT, signal.SIGTERM])
def test_later_signals_request_a_stop_and_a_second_ctrl_c_ends_the_process(first, capfd):
  before = signal.getsignal(signal.SIGTERM)
  with StopSignal() as stop:
    stop.steps_begin()
    assert stop.interruptible(len)('ab') == 2 and not stop.asked
    send(first)
    assert stop.number == first
    send(signal.SIGTERM)
    assert stop.number == first
    with pytest.raises(Stopped):
      stop.interruptible(len)('ab')
    with pytest.raises(KeyboardInterrupt):
      send(signal.SIGINT)
  assert signal.getsignal(signal.SIGTERM) is before
  assert len(capfd.readouterr().err.splitlines()) == 1
