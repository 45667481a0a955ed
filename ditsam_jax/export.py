"""Copies a model, optionally in a smaller type: python -m ditsam_jax.export --checkpoint=runs/ldit --output=models/ldit

--dtype=float16 halves the size, as for the shipped models.
"""

import jax.numpy as jnp

from ditsam_jax import command_line
from ditsam_jax.options import Parser
from ditsam_jax.storage import saved_model
from ditsam_jax.storage.description import read_description, vocabulary_file
from ditsam_jax.storage.paths import local


def main(arguments: list[str] | None = None) -> int:
  """Runs the command."""
  parser = Parser(prog='python -m ditsam_jax.export', description=(__doc__ or '').split('\n')[0])
  parser.add_argument('--checkpoint', required=True, type=local, help="a model's folder or a training run's workdir")
  parser.add_argument('--output', required=True, type=local, help='output folder; an existing model there is replaced')
  parser.add_argument('--dtype', choices=('float32', 'float16', 'bfloat16'), default='float32')
  options = parser.parse_args(arguments)
  description = read_description(options.checkpoint)
  model = saved_model.load(options.checkpoint)
  vocabulary = None if model.config.text_encoder is None else vocabulary_file(options.checkpoint)
  saved_model.save(
    options.output,
    model,
    vocabulary=vocabulary,
    data=description['data'],
    notes=description['notes'] | {'dtype': options.dtype},
    fresh=description['fresh'],
    assumed=description['assumed'],
    dtype=jnp.dtype(options.dtype),
  )
  print(f'{options.output}: {saved_model.size(options.output) / 1e6:.2f} MB')
  return 0


if __name__ == '__main__':
  command_line.run(main)
