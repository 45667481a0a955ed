"""Programs on a terminal of their own, and what they show there."""

import os
import pty
import select
import subprocess
import termios
from typing import Any


def start(*arguments: object, **more: Any) -> tuple[subprocess.Popen, int]:
  """A program whose stderr is a terminal, and that terminal's other end for `shown`."""
  screen, terminal = pty.openpty()
  termios.tcsetwinsize(terminal, (24, 100))
  process = subprocess.Popen([str(argument) for argument in arguments], stderr=terminal, **more)
  os.close(terminal)
  return process, screen


def shown(screen: int) -> bytes:
  """What a terminal shows next; nothing once no process has it any more."""
  assert select.select([screen], [], [], 60)[0], 'nothing is shown, and the terminal is still held'
  try:
    return os.read(screen, 1000)
  except OSError:  # Linux' end of file
    return b''


def rest(screen: int) -> bytes:
  """All that is shown until the last process that holds the terminal has ended."""
  found = b''
  while more := shown(screen):
    found += more
  os.close(screen)
  return found
