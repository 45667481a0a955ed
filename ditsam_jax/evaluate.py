"""Scores a model on a split, by the release's protocol and the standard one.

  python -m ditsam_jax.evaluate --checkpoint=shapes --split=test

Prints a table and writes metrics.json, samples.csv (the IoU of every sample) and predictions.png.
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any

from ditsam_jax import command_line, saved_model
from ditsam_jax.command_line import UserError
from ditsam_jax.data import datasets
from ditsam_jax.data.referring import ReferringSource
from ditsam_jax.data.tokenization import Tokenizer
from ditsam_jax.evaluation.evaluator import Results, evaluate_split, forward_of
from ditsam_jax.evaluation.pictures import Gallery
from ditsam_jax.image_files import write_png
from ditsam_jax.training.logging import write_json, write_text


def main(arguments: list[str] | None = None) -> int:
  """Runs the command."""
  options = _parse(arguments)
  vocabulary = saved_model.vocabulary_file(options.checkpoint)
  trained_on = saved_model.data_config(options.checkpoint)
  dataset = options.dataset or trained_on.get('dataset', datasets.SHAPES)
  source = _open(dataset, options, trained_on)
  output = _output_folder(options)
  model = saved_model.load(options.checkpoint)
  config = model.config
  tokenizer = Tokenizer(vocabulary, config.max_text_tokens)
  gallery = Gallery(config.pixel_mean, config.pixel_std)
  started = time.time()
  results = evaluate_split(forward_of(model), source, tokenizer, config, batch_size=options.batch_size,
                           limit=options.limit, gallery=gallery)
  about = {'checkpoint': options.checkpoint, 'dataset': dataset, 'split': options.split,
           'seconds': round(time.time() - started, 1)}
  print(results.table())
  _write(output, results, gallery, about)
  return 0


def _open(dataset: str, options: argparse.Namespace, trained_on: dict[str, Any]) -> ReferringSource:
  # A model of shapes is scored on scenes like those it was trained on.
  scenes = trained_on.get('scenes') if dataset == trained_on.get('dataset') else None
  return datasets.open_split(dataset, options.data_dir, options.split, scenes=scenes)


def _write(folder: Path, results: Results, gallery: Gallery, about: dict[str, Any]) -> None:
  heading = '{checkpoint} on {dataset} {split}'.format(**about)
  files = {name: folder / name for name in ('metrics.json', 'samples.csv', 'predictions.png')}
  try:
    write_json(files['metrics.json'], about | results.to_json())
    write_text(files['samples.csv'], results.to_csv())
  except OSError as error:
    raise UserError(f'results cannot be written to {str(folder)!r} ({error.strerror or error}); '
                    'choose another --output') from error
  write_png(files['predictions.png'], gallery.panel(f'{heading}: mIoU {results.miou:.1f} %'))
  print('written:', ', '.join(map(str, files.values())))


def _output_folder(options: argparse.Namespace) -> Path:
  """Made before the evaluation, which may take hours. Raises UserError where nothing can be written."""
  if options.output:
    folder = Path(options.output)
  elif saved_model.resolve(options.checkpoint).parent == saved_model.SHIPPED:
    folder = Path('runs') / f'evaluation-{options.checkpoint}-{options.split}'
  else:
    folder = Path(options.checkpoint).expanduser() / f'evaluation-{options.split}'
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f'output folder {str(folder)!r} cannot be made ({error.strerror or error}); '
                    'choose another --output') from error
  if not os.access(folder, os.W_OK):
    raise UserError(f'output folder {str(folder)!r} cannot be written to; choose another --output')
  return folder


def _parse(arguments: list[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog='python -m ditsam_jax.evaluate', description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
  parser.add_argument('--checkpoint', required=True, metavar='DIR',
                      help="a training run's workdir, a model's folder, or 'shapes', which comes along")
  parser.add_argument(
    '--dataset', help=f'{", ".join(datasets.NAMES)} (default: what the model was trained on)')
  parser.add_argument('--split', default='test', help='train, val, test, ... (default: %(default)s)')
  parser.add_argument('--data-dir', default='data', metavar='DIR',
                      help='where prepared data sets live; shapes are made there (default: %(default)s)')
  parser.add_argument('--batch-size', type=int, default=64, metavar='N',
                      help='samples at once (default: %(default)s)')
  parser.add_argument('--limit', type=int, metavar='N', help='so many samples, evenly spread, instead of all')
  parser.add_argument('--output', metavar='DIR',
                      help="default: evaluation-SPLIT in the checkpoint's folder, runs/evaluation-NAME-SPLIT "
                           'for a model that comes along')
  options = parser.parse_args(arguments)
  for name in ('batch_size', 'limit'):
    value = getattr(options, name)
    if value is not None and value < 1:
      raise UserError(f'--{name.replace("_", "-")}={value}: expected a whole number from 1')
  return options


if __name__ == '__main__':
  command_line.run(main)
