"""HTTP connections that cannot be held open for nothing: uvicorn's, with deadlines and a bound on their number."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from ditsam_jax.serving.limits import Limits

_EVERY = 1.0  # seconds between looks at a connection


def bounded(limits: Limits) -> type[asyncio.Protocol]:
  """The protocol for uvicorn's `http`. Bodies and answers have deadlines of their own in the application."""

  class Bounded(H11Protocol):
    """Closes connections that send no whole head, go on sending after the answer, or do not take the answer."""

    _quiet_since = 0.0  # since the connection was made, or since the last answer
    _stuck_since: float | None = None  # since the client stopped to read
    _look_later: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
      super().connection_made(transport)
      if len(self.connections) > limits.connections:
        transport.abort()
        return
      self._quiet_since = self.loop.time()
      self._look_later = self.loop.call_later(_EVERY, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
      if self._look_later is not None:
        self._look_later.cancel()
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

    def _look(self) -> None:
      waiting = self.cycle is None or self.cycle.response_complete
      since = self._stuck_since if self._stuck_since is not None else self._quiet_since if waiting else None
      if since is not None and self.loop.time() - since > limits.header_seconds:
        self.transport.abort()
      else:
        self._look_later = self.loop.call_later(_EVERY, self._look)

  return Bounded
