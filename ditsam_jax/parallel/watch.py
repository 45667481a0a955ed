"""Detects a dead host at once, and ends the others with one line.

JAX also detects it, by missed heartbeats, but then aborts with a stack trace. Here every host holds a TCP connection to
the first one: the system closes it when a process ends for any reason, and keep-alive probes detect a machine that is
gone. A host that exits normally says goodbye first.
"""

import os
import secrets
import socket
import threading

import jax
import numpy as np
from jax.experimental import multihost_utils

from ditsam_jax.terminal import say

_BYE = b'bye'
_PROBE = {'TCP_KEEPIDLE': 10, 'TCP_KEEPINTVL': 5, 'TCP_KEEPCNT': 4}  # seconds, seconds, times: half a minute
_PATIENCE = 20  # seconds for the connections to be made


class Watch:
  """While the context lasts, the death of any host ends this process with status 1. All hosts must enter it."""

  def __init__(self):
    self._index, self._count = jax.process_index(), jax.process_count()
    self._peers: dict[int, socket.socket] = {}
    self._leaving = False

  def __enter__(self) -> 'Watch':
    if self._count > 1:
      self._meet()
      for host, peer in self._peers.items():
        threading.Thread(target=self._listen, args=(host, peer), daemon=True).start()
    return self

  def __exit__(self, kind, *exception):
    """In order: says goodbye. With an exception the others must not wait for this host, so there is none."""
    self._leaving = True
    for peer in self._peers.values():
      try:
        if kind is None:
          peer.sendall(_BYE)
        peer.shutdown(socket.SHUT_WR)
      except OSError:
        pass  # it has left before

  def _meet(self) -> None:
    """Connects every host to the first one, which tells all where it listens."""
    token = secrets.token_bytes(16)
    with socket.create_server(('', 0), backlog=self._count) as server:
      told = f'{socket.gethostname()} {server.getsockname()[1]}'.encode() + b'\n' + token.hex().encode()
      told = multihost_utils.broadcast_one_to_all(np.frombuffer(told.ljust(512), np.uint8)).tobytes()
      where, token = told.strip().split(b'\n')
      name, port = where.decode().split()
      if self._index:
        if (peer := self._connect(name, int(port), token)) is not None:
          self._peers[0] = peer
        return
      server.settimeout(_PATIENCE)
      try:
        while len(self._peers) < self._count - 1:
          peer, _ = server.accept()
          peer.settimeout(_PATIENCE)
          greeting = peer.recv(len(token) + 8)
          if greeting[: len(token)] == token:
            self._peers[int(greeting[len(token) :])] = _probed(peer)
      except OSError:  # JAX's own heartbeats remain
        say('warning: not all hosts can be watched; if one dies, the others take longer to stop')

  def _connect(self, name: str, port: int, token: bytes) -> socket.socket | None:
    here = ['localhost'] if name == socket.gethostname() else []
    for address in [*here, name]:
      try:
        peer = socket.create_connection((address, port), timeout=_PATIENCE)
        peer.sendall(token + f'{self._index:8d}'.encode())
        return _probed(peer)
      except OSError:
        continue
    return None  # the first host tells that not all are watched

  def _listen(self, host: int, peer: socket.socket) -> None:
    try:
      told = peer.recv(64)
    except OSError:
      told = b''
    if told == _BYE or self._leaving:
      return
    dead = int(told) if told else host
    for other, connection in self._peers.items():  # the first host passes it on
      if other != dead:
        try:
          connection.sendall(str(dead).encode())
        except OSError:
          pass
    say(
      f'\nhost {dead} of {self._count} died, so host {self._index} ends too; checkpoints are intact: '
      f'rerun the command on all hosts to resume'
    )
    os._exit(1)  # other threads may wait for the dead host for ever


def _probed(peer: socket.socket) -> socket.socket:
  peer.settimeout(None)
  peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  for name, value in _PROBE.items():
    if hasattr(socket, name):
      peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
  return peer
