"""Programs on several devices, played by this machine's processor in a process of its own."""

import os
import subprocess
import sys


def run_on_devices(program: str, count: int) -> str:
  """Runs a Python program where JAX has `count` CPU devices; what it prints."""
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': os.pathsep.join(sys.path),
                 'XLA_FLAGS': f'--xla_force_host_platform_device_count={count}'}
  process = subprocess.run([sys.executable, '-c', program], env=environment, capture_output=True, text=True)
  assert process.returncode == 0, process.stderr
  return process.stdout
