"""The exception for bad input."""

from ditsam_jax.terminal import printable

LONGEST = 2000  # characters per message


class UserError(Exception):
  """Bad input. The message is one line: the thing, its value, what was expected, and what to do.

  Control characters in the message are escaped, and long messages lose their middle, see `terminal.printable`.
  """

  def __init__(self, message: object = ''):
    super().__init__(printable(message, LONGEST))
