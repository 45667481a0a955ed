"""Detects a dead host at once, and ends the others with one line.

JAX also detects dead hosts, by missed heartbeats, but then aborts with a stack trace. Here each host keeps a TCP
connection to the first one: the system closes it when a process ends for any reason, and keep-alive probes detect a
machine that is gone. A host that exits normally says goodbye first.
"""

import os
import secrets
import socket
import threading

import numpy as np

from ditsam_jax.parallel import distributed
from ditsam_jax.terminal import say

_BYE = b'bye'
_PROBE = {'TCP_KEEPIDLE': 10, 'TCP_KEEPINTVL': 5, 'TCP_KEEPCNT': 4}  # seconds, seconds, probes: half a minute in total
_TIMEOUT = 20  # seconds to connect


class Watch:
  """A context in which the death of any host ends this process with status 1. All hosts must enter it."""

  def __init__(self):
    self._index, self._count = distributed.place()
    self._peers: dict[int, socket.socket] = {}
    self._leaving = False

  def __enter__(self) -> 'Watch':
    if self._count > 1:
      self._connect_all()
      for host, peer in self._peers.items():
        threading.Thread(target=self._listen, args=(host, peer), daemon=True).start()
    return self

  def __exit__(self, kind, *exception):
    """Says goodbye, but not after an exception, so that the other hosts end too instead of waiting."""
    self._leaving = True
    for peer in self._peers.values():
      try:
        if kind is None:
          peer.sendall(_BYE)
        peer.shutdown(socket.SHUT_WR)
      except OSError:
        pass  # the peer has already left

  def _connect_all(self) -> None:
    """Connects each host to the first one, which broadcasts its address."""
    token = secrets.token_bytes(16)
    with socket.create_server(('', 0), backlog=self._count) as server:
      message = f'{socket.gethostname()} {server.getsockname()[1]}'.encode() + b'\n' + token.hex().encode()
      message = distributed.from_first(np.frombuffer(message.ljust(512), np.uint8)).tobytes()
      address, token = message.strip().split(b'\n')
      name, port = address.decode().split()
      if self._index:
        if (peer := self._connect(name, int(port), token)) is not None:
          self._peers[0] = peer
        return
      server.settimeout(_TIMEOUT)
      try:
        while len(self._peers) < self._count - 1:
          peer, _ = server.accept()
          peer.settimeout(_TIMEOUT)
          greeting = peer.recv(len(token) + 8)
          if greeting[: len(token)] == token:
            self._peers[int(greeting[len(token) :])] = _with_keepalive(peer)
      except OSError:  # JAX's own heartbeats remain
        say('warning: not all hosts can be watched; if one dies, the others take longer to stop')

  def _connect(self, name: str, port: int, token: bytes) -> socket.socket | None:
    here = ['localhost'] if name == socket.gethostname() else []
    for address in [*here, name]:
      try:
        peer = socket.create_connection((address, port), timeout=_TIMEOUT)
        peer.sendall(token + f'{self._index:8d}'.encode())
        return _with_keepalive(peer)
      except OSError:
        continue
    return None  # the first host warns that not all hosts are watched

  def _listen(self, host: int, peer: socket.socket) -> None:
    try:
      message = peer.recv(64)
    except OSError:
      message = b''
    if message == _BYE or self._leaving:
      return
    dead = int(message) if message else host
    for other, connection in self._peers.items():  # the first host informs the others
      if other != dead:
        try:
          connection.sendall(str(dead).encode())
        except OSError:
          pass
    say(
      f'\nhost {dead} of {self._count} died, so host {self._index} ends too; checkpoints are intact: '
      f'rerun the command on all hosts to resume'
    )
    os._exit(1)  # other threads may wait for the dead host forever


def _with_keepalive(peer: socket.socket) -> socket.socket:
  peer.settimeout(None)
  peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  for name, value in _PROBE.items():
    if hasattr(socket, name):
      peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
  return peer
