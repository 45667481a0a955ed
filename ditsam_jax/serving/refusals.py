"""What the service refuses, as an HTTP status and one line."""

from ditsam_jax.terminal import printable


class Refused(Exception):
  """A request that is not answered.

  Attributes:
    status: of HTTP.
    message: one line for the client.
    retry_after: whole seconds after which to try again; None if that is no use.
  """

  def __init__(self, status: int, message: str, retry_after: int | None = None):
    super().__init__(message)
    self.status, self.message, self.retry_after = status, printable(message, 2000), retry_after
