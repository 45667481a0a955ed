"""Extends uvicorn's HTTP protocol with deadlines and a limit on the number of connections."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from ditsam_jax.serving.limits import Limits

_EVERY = 1.0  # seconds between checks of a connection


def bounded(limits: Limits, most: int) -> type[asyncio.Protocol]:
  """Returns the protocol for uvicorn's `http`. The application has its own deadlines for bodies and answers.

  Args:
    limits: see there.
    most: connections that the system allows.
  """
  connections = min(limits.connections, most)

  class Bounded(H11Protocol):
    """Closes connections with an incomplete head, idle ones, and those whose client does not read the answer."""

    _quiet_since = 0.0  # time of the connection or the last answer
    _stuck_since: float | None = None  # time when the client stopped reading
    _next_check: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
      super().connection_made(transport)
      if len(self.connections) > connections:
        transport.abort()
        return
      self._quiet_since = self.loop.time()
      self._next_check = self.loop.call_later(_EVERY, self._check)

    def connection_lost(self, exc: Exception | None) -> None:
      if self._next_check is not None:
        self._next_check.cancel()
      super().connection_lost(exc)

    def on_response_complete(self) -> None:
      self._quiet_since = self.loop.time()
      super().on_response_complete()

    def pause_writing(self) -> None:
      self._stuck_since = self.loop.time()
      super().pause_writing()

    def resume_writing(self) -> None:
      self._stuck_since = None
      super().resume_writing()

    def _check(self) -> None:
      waiting = self.cycle is None or self.cycle.response_complete
      since = self._stuck_since if self._stuck_since is not None else self._quiet_since if waiting else None
      if since is not None and self.loop.time() - since > limits.header_seconds:
        self.transport.abort()
      else:
        self._next_check = self.loop.call_later(_EVERY, self._check)

  return Bounded
