"""All commands under one name: `ditsam-jax predict ...`, the same as `python -m ditsam_jax.predict ...`."""

import importlib
import sys

from ditsam_jax import command_line

COMMANDS = {
  'predict': 'masks of sentences, points and boxes',
  'train': 'train a model',
  'evaluate': 'score a model on a data set',
  'prepare': 'make a data set of official downloads',
  'export': 'copy a model into a folder of its own',
  'torch_to_flax': 'PyTorch weights in',
  'flax_to_torch': 'PyTorch weights out',
  'compile_report': 'what a training step needs on an accelerator that is not there',
}


def main() -> None:
  """Runs the command that the first argument names, and exits with its status."""
  command_line.begin()
  command_line.run(_run)


def _run() -> int | None:
  name = sys.argv[1].replace('-', '_') if len(sys.argv) > 1 else ''
  if name in COMMANDS:
    room = 'ditsam_jax.convert' if name in ('torch_to_flax', 'flax_to_torch') else 'ditsam_jax'
    return importlib.import_module(f'{room}.{name}').main(sys.argv[2:])
  print('usage: ditsam-jax COMMAND ...   (ditsam-jax COMMAND --help)', *_lines(), sep='\n')
  if name in ('', '__help', '_h'):
    return 0
  command_line.fail(f'command {sys.argv[1]!r} is unknown; expected one of {", ".join(COMMANDS)}')


def _lines() -> list[str]:
  width = max(map(len, COMMANDS))
  return [f'  {name:{width}}  {meaning}' for name, meaning in COMMANDS.items()]


if __name__ == '__main__':
  main()
