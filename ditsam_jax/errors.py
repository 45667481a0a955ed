"""The exception for bad input."""

from ditsam_jax.terminal import printable

LONGEST = 2000  # characters of a message


class UserError(Exception):
  """Bad input. The message names the thing, its value, what was expected and what to do, on one line.

  Input quoted in the message is escaped, and long messages are shortened in the middle: see `terminal.printable`.
  """

  def __init__(self, message: object = ''):
    super().__init__(printable(message, LONGEST))
