"""A host that saves checkpoints with others; one of them cannot write the second one.

python -m tests.training.failing_host WORKDIR FAILS --coordinator=... --hosts=... --host=...
"""

import argparse
import resource
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ditsam_jax.parallel import distributed, save_barrier
from ditsam_jax.training.checkpoint import Checkpoints, Progress
from ditsam_jax.training.step import TrainState
from tests.training.checkpoints import numbers

SECONDS = 3  # until a failure shows, instead of half a minute


def state(step):
  """Two rows of 800 kB that do not compress, one on each host."""
  mesh = Mesh(np.asarray(jax.devices()), 'x')

  def placed(values, *axes):
    return jax.make_array_from_callback(values.shape, NamedSharding(mesh, PartitionSpec(*axes)), values.__getitem__)

  rows = placed(np.random.default_rng(step).normal(size=(len(jax.devices()), 200_000)).astype(np.float32), 'x')
  return TrainState(placed(np.asarray(step, np.int32)), {'w': rows}, {'w': rows}, {}, {}, placed(np.zeros(2, np.int32)))


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('workdir', type=Path)
  parser.add_argument('fails', type=int)
  distributed.add_flags(parser)
  options = parser.parse_args()
  distributed.initialise(options)
  save_barrier._SUCCEEDED = 1000 * SECONDS
  signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  with Checkpoints(options.workdir, 5, {}) as checkpoints:
    for step in (1, 2, 3):
      if options.host == options.fails and step == 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
      started = time.monotonic()
      checkpoints.save(state(step), numbers(), Progress())
      checkpoints.wait()
      print(step, round(time.monotonic() - started, 1), checkpoints.latest_step, flush=True)
      resource.setrlimit(resource.RLIMIT_FSIZE, before)
  sys.stdout.flush()


if __name__ == '__main__':
  main()
