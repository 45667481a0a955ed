"""Converts PyTorch weights: python convert/torch_to_flax.py --input=FILE_OR_DIR --output=DIR

Runs ditsam_jax/convert/torch_to_flax.py from a clone, without installing it.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
from ditsam_jax import command_line

command_line.begin()

from ditsam_jax.convert.torch_to_flax import main

if __name__ == '__main__':
  command_line.run(main, on_cpu=True)
