"""Runs programs on pseudo-terminals and reads what they print there."""

import os
import pty
import select
import subprocess
import termios
from typing import Any


def start(*arguments: object, **more: Any) -> tuple[subprocess.Popen, int]:
  """Starts a program whose stderr is a terminal; returns the process and the terminal's other end, for `shown`."""
  screen, terminal = pty.openpty()
  termios.tcsetwinsize(terminal, (24, 100))
  process = subprocess.Popen([str(argument) for argument in arguments], stderr=terminal, **more)
  os.close(terminal)
  return process, screen


def shown(screen: int) -> bytes:
  """Returns the terminal's next output; empty once all processes have closed it."""
  assert select.select([screen], [], [], 60)[0], 'no output, but a process still holds the terminal open'
  try:
    return os.read(screen, 1000)
  except OSError:  # end of file on Linux
    return b''


def rest(screen: int) -> bytes:
  """Returns all output until the last process that holds the terminal open has ended."""
  found = b''
  while more := shown(screen):
    found += more
  os.close(screen)
  return found
