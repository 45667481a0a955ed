"""All commands under one name: `ditsam-jax predict ...` is the same as `python -m ditsam_jax.predict ...`."""

import importlib
import sys

from ditsam_jax import command_line

COMMANDS = {
  'predict': 'segment images from sentences, points and boxes',
  'everything': 'segment everything in images, or everything that a phrase names',
  'train': 'train a model',
  'serve': 'serve a page to try a model on, and an HTTP API',
  'evaluate': 'evaluate a model on a data set',
  'prepare': 'prepare your own images or RefCOCO for training and evaluation',
  'export': 'export a model to another runtime, or copy it in a smaller type',
  'torch_to_flax': 'convert PyTorch weights to a model',
  'flax_to_torch': 'convert a model to PyTorch weights',
  'compile_report': 'compile a training step for TPUs or GPUs without having them; find what fits',
}

ON_CPU = {'torch_to_flax', 'flax_to_torch', 'compile_report'}


def main() -> None:
  """Runs the command named by the first argument, and exits with its status."""
  command_line.begin()
  name = sys.argv[1].replace('-', '_') if len(sys.argv) > 1 else ''
  if name in COMMANDS:
    package = 'ditsam_jax.convert' if name in ('torch_to_flax', 'flax_to_torch') else 'ditsam_jax'
    # Imported before `run`, which sets up the compilation cache only if JAX has been imported.
    command = importlib.import_module(f'{package}.{name}')
    command_line.run(lambda: command.main(sys.argv[2:]), on_cpu=name in ON_CPU)
  if name not in ('', '__help', '_h'):
    command_line.fail(f'command {sys.argv[1]!r} is unknown; expected one of {", ".join(COMMANDS)}')
  command_line.run(_list)


def _list() -> None:
  width = max(map(len, COMMANDS))
  lines = [f'  {name:{width}}  {meaning}' for name, meaning in COMMANDS.items()]
  print('usage: ditsam-jax COMMAND ...   (ditsam-jax COMMAND --help)', *lines, sep='\n')


if __name__ == '__main__':
  main()
