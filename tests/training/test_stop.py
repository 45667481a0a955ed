"""What signals ask for, and when."""

import os
import signal

import pytest

from ditsam_jax.interruption import Terminated
from ditsam_jax.training.stop import Stopped, StopSignal


def send(number):
  os.kill(os.getpid(), number)


def test_before_there_are_steps_signals_end_at_once():
  with StopSignal():
    with pytest.raises(KeyboardInterrupt):
      send(signal.SIGINT)
    with pytest.raises(Terminated):
      send(signal.SIGTERM)


@pytest.mark.parametrize('first', [signal.SIGINT, signal.SIGTERM])
def test_then_they_ask_and_only_a_further_ctrl_c_ends_at_once(first, capfd):
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
