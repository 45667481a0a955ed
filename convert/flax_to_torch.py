"""Writes PyTorch weights: python convert/flax_to_torch.py --input=DIR --output=FILE

Runs ditsam_jax/convert/flax_to_torch.py from a clone, without installing it.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
from ditsam_jax import command_line

command_line.begin()

from ditsam_jax.convert.flax_to_torch import main

if __name__ == '__main__':
  command_line.run(main, on_cpu=True)
