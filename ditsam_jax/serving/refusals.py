"""Refusals of the service: an HTTP status and one line."""

from ditsam_jax.terminal import printable


class Refused(Exception):
  """Raised to refuse a request.

  Attributes:
    status: HTTP status.
    message: one line for the client.
    retry_after: whole seconds after which to retry; None if retrying does not help.
  """

  def __init__(self, status: int, message: str, retry_after: int | None = None):
    super().__init__(message)
    self.status, self.message, self.retry_after = status, printable(message, 2000), retry_after
