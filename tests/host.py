"""Runs a module as one of several hosts, which share compiled programs: python -m tests.host MODULE ARGUMENTS

On GPUs, hosts find each other's programs in JAX's cache. On CPUs the cache's keys contain the process and the device's
number, so every host would compile everything, half a minute for a training run. Here the others wait for the first.
"""

import runpy
import sys
import time

import jax
from jax._src import cache_key, compiler

hash_options_of, read_cached = cache_key._hash_serialized_compile_options, compiler._cache_read
assert cache_key._hash_accelerator_config  # otherwise it has another name now
PATIENCE = 120  # seconds, then a host compiles by itself


def hash_devices(key, devices) -> None:
  """What all hosts see alike: the kinds of devices, and how they are spread over hosts."""
  hosts = sorted({device.process_index for device in devices.flat})
  key.update(str([(device.device_kind, hosts.index(device.process_index)) for device in devices.flat]).encode())


def hash_options(key, options, **_) -> None:
  """As JAX does for GPUs, without the device's number, but only for programs that run on one device."""
  assigned = options.device_assignment
  hash_options_of(key, options, assigned is None or assigned.replica_count() * assigned.computation_count() == 1)


def read(name, key, options, backend, devices, *more):
  """Reads a compiled program; if it runs on several hosts, waits until the first host has written it."""
  waits = jax.process_index() > 0 and len({device.process_index for device in devices}) > 1
  deadline = time.monotonic() + PATIENCE * waits
  while (found := read_cached(name, key, options, backend, devices, *more))[0] is None and time.monotonic() < deadline:
    time.sleep(0.1)
  return found


if __name__ == '__main__':
  cache_key._hash_accelerator_config, cache_key._hash_serialized_compile_options = hash_devices, hash_options
  compiler._cache_read = read
  del sys.argv[0]
  runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)
