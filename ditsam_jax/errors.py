"""The one exception that users see."""


class UserError(Exception):
  """Bad input. The message names the thing, its value, what was expected and what to do, on one line."""
