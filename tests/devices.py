"""Simulates several devices and hosts: subprocesses with several CPU devices each."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_on_devices(program: str, count: int, *arguments: object) -> str:
  """Runs a Python program in which JAX has `count` CPU devices; returns what it prints."""
  process = subprocess.run(
    [sys.executable, '-c', program, *map(str, arguments)], env=_environment(count), capture_output=True, text=True
  )
  assert process.returncode == 0, process.stderr
  return process.stdout


@contextlib.contextmanager
def hosts(count: int, module: str, *arguments: str, devices: int = 1) -> Iterator[list[subprocess.Popen]]:
  """Runs `python -m MODULE` on `count` hosts with `devices` devices each; kills those still running at the end.

  '{host}' in an argument is replaced by the host's number.
  """
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  processes = [
    subprocess.Popen(
      [
        sys.executable,
        '-m',
        'tests.host',
        module,
        *(argument.replace('{host}', str(host)) for argument in arguments),
        f'--coordinator=127.0.0.1:{port}',
        f'--hosts={count}',
        f'--host={host}',
      ],
      cwd=ROOT,
      env=_environment(devices),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for host in range(count)
  ]
  try:
    yield processes
  finally:
    for process in processes:
      process.kill()


def _environment(devices: int) -> dict[str, str]:
  return {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'PYTHONPATH': os.pathsep.join([str(ROOT), *sys.path]),
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
  }
