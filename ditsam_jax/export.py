"""Exports a model: python -m ditsam_jax.export --checkpoint=runs/ldit --output=models/ldit

--format chooses the runtime, see docs/export.md. --dtype=float16 halves the size, as for the shipped models.
"""

import argparse
from pathlib import Path

from ditsam_jax import command_line
from ditsam_jax.errors import UserError
from ditsam_jax.exporting import model_card
from ditsam_jax.exporting.formats import FORMATS, export
from ditsam_jax.exporting.request import Request
from ditsam_jax.options import Parser
from ditsam_jax.storage import places
from ditsam_jax.storage.paths import local
from ditsam_jax.terminal import printable


def main(arguments: list[str] | None = None) -> int:
  """Runs the command."""
  parser = Parser(prog='python -m ditsam_jax.export', description=(__doc__ or '').split('\n')[0])
  parser.add_argument(
    '--checkpoint',
    required=True,
    type=places.model,
    help="a model's folder, a training run's workdir, or hf://OWNER/NAME",
  )
  parser.add_argument('--output', required=True, type=local, help='output folder; an earlier export there is replaced')
  titles = '; '.join(f'{name}: {chosen.title}' for name, chosen in FORMATS.items())
  parser.add_argument('--format', choices=tuple(FORMATS), default='flax', help=titles)
  parser.add_argument('--dtype', choices=_values('dtypes'), default='float32', help='type of the stored weights')
  parser.add_argument('--quantise', choices=_values('quantise'), help='quantise the weights of matrix products (onnx)')
  masks = (
    "what the decoder returns: one mask per prompt, selected as by Meta's --return-single-mask, or all four (onnx)"
  )
  parser.add_argument('--masks', choices=_values('masks'), help=masks)
  card = parser.add_argument_group('model card')
  card.add_argument(
    '--model-card', action='store_true', help='also write README.md, as the Hugging Face Hub expects it'
  )
  card.add_argument(
    '--license', metavar='ID', help="the model's licence: one of the Hub's identifiers, such as apache-2.0"
  )
  card.add_argument('--license-name', metavar='NAME', help='its name, for --license=other')
  card.add_argument('--license-link', metavar='URL', help='its text, for --license=other')
  card.add_argument(
    '--scores', type=local, metavar='FILE', help="metrics.json of an evaluation (default: that of the model's workdir)"
  )
  options = parser.parse_args(arguments)
  request = Request(options.checkpoint, options.output, options.dtype, options.quantise, options.masks)
  card = _card(options)
  print(export(options.format, request))
  if card:
    model_card.write(card, Path(options.output))
    print(f'{printable(Path(options.output) / model_card.FILE)}: the model card')
  return 0


def _card(options: argparse.Namespace) -> model_card.Card | None:
  """What the model card will say, read before the export. Raises UserError if an option is wrong."""
  if not options.model_card:
    for name in ('license', 'license_name', 'license_link', 'scores'):
      if getattr(options, name) is not None:
        raise UserError(f'--{name.replace("_", "-")} belongs to --model-card; add it')
    return None
  licence = model_card.licence(options.license, options.license_name, options.license_link)
  return model_card.read(options.checkpoint, options.output, options.format, licence, options.scores)


def _values(option: str) -> tuple[str, ...]:
  """The values of an option that any format supports."""
  return tuple(dict.fromkeys(value for chosen in FORMATS.values() for value in getattr(chosen, option)))


if __name__ == '__main__':
  command_line.run(main)
