"""Exports a model: python -m ditsam_jax.export --checkpoint=runs/ldit --output=models/ldit

--format chooses the runtime, see docs/export.md. --dtype=float16 halves the size, as for the shipped models.
"""

from ditsam_jax import command_line
from ditsam_jax.exporting.formats import FORMATS, export
from ditsam_jax.exporting.request import Request
from ditsam_jax.options import Parser
from ditsam_jax.storage.paths import local


def main(arguments: list[str] | None = None) -> int:
  """Runs the command."""
  parser = Parser(prog='python -m ditsam_jax.export', description=(__doc__ or '').split('\n')[0])
  parser.add_argument('--checkpoint', required=True, type=local, help="a model's folder or a training run's workdir")
  parser.add_argument('--output', required=True, type=local, help='output folder; an earlier export there is replaced')
  titles = '; '.join(f'{name}: {chosen.title}' for name, chosen in FORMATS.items())
  parser.add_argument('--format', choices=tuple(FORMATS), default='flax', help=titles)
  parser.add_argument('--dtype', choices=_values('dtypes'), default='float32', help='type of the stored weights')
  parser.add_argument('--quantise', choices=_values('quantise'), help='quantise the weights of matrix products (onnx)')
  masks = (
    "what the decoder returns: one mask per prompt, selected as by Meta's --return-single-mask, or all four (onnx)"
  )
  parser.add_argument('--masks', choices=_values('masks'), help=masks)
  options = parser.parse_args(arguments)
  request = Request(options.checkpoint, options.output, options.dtype, options.quantise, options.masks)
  print(export(options.format, request))
  return 0


def _values(option: str) -> tuple[str, ...]:
  """The values of an option that any format supports."""
  return tuple(dict.fromkeys(value for chosen in FORMATS.values() for value in getattr(chosen, option)))


if __name__ == '__main__':
  command_line.run(main)
