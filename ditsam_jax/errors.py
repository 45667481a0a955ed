"""The one exception that users see."""

from ditsam_jax.terminal import printable

LONGEST = 2000  # characters of a message


class UserError(Exception):
  """Bad input. The message names the thing, its value, what was expected and what to do, on one line.

  Whatever of the input is in it is escaped, and the middle of a long one is left out: see `terminal.printable`.
  """

  def __init__(self, message: object = ''):
    super().__init__(printable(message, LONGEST))
