"""Evaluates a model on one or more splits, with the release's and the standard protocol.

  python -m ditsam_jax.evaluate --checkpoint=shapes --split=test
  python -m ditsam_jax.evaluate --checkpoint=runs/ldit --dataset=refcoco --splits=val,testA,testB

Prints tables and writes metrics.json, samples.csv (IoU and pixel counts of all samples) and predictions.png; with
--save-pictures=N also ranked.png, the N worst, median and best samples. --clicks=N then corrects each mask with N
clicks and writes clicks.csv and clicks.png. Several hosts share the work if each gets --coordinator, --hosts and
--host; the results are the same.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from ditsam_jax import command_line
from ditsam_jax.data import datasets
from ditsam_jax.data.referring import ReferringSource
from ditsam_jax.errors import UserError
from ditsam_jax.evaluation.click_pictures import ClickGallery
from ditsam_jax.evaluation.click_results import ClickResults
from ditsam_jax.evaluation.clicks import evaluate_clicks
from ditsam_jax.evaluation.evaluator import evaluate_split, pictures_of
from ditsam_jax.evaluation.forward import Forward, forward_of
from ditsam_jax.evaluation.pictures import Gallery, prediction_panel, worst_median_best
from ditsam_jax.evaluation.protocols import PROTOCOLS
from ditsam_jax.evaluation.results import Results
from ditsam_jax.inference.segmenter import Segmenter
from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.options import Parser, add_dtype
from ditsam_jax.parallel import distributed
from ditsam_jax.parallel.watch import Watch
from ditsam_jax.storage import hub, places, saved_model
from ditsam_jax.storage.bucket import AnyPath
from ditsam_jax.storage.description import data_config, vocabulary_file, warn_if_fresh
from ditsam_jax.storage.files import make_output_folder, write_json, write_text
from ditsam_jax.storage.image_files import write_png
from ditsam_jax.storage.paths import any_path, anywhere
from ditsam_jax.terminal import say
from ditsam_jax.tokenization import Tokenizer

_MOST_PICTURES = 100  # per section; most programs cannot open larger sheets
_MOST_CLICKS = 20  # as in the literature


def main(arguments: list[str] | None = None) -> int:
  """Runs the command."""
  options = _parse(arguments)
  distributed.initialise(options)
  vocabulary = vocabulary_file(options.checkpoint)
  trained_on = data_config(options.checkpoint)
  dataset = trained_on.get('dataset', datasets.SHAPES.name) if options.dataset is None else options.dataset
  sources = _open(dataset, options, trained_on)
  output = _Output(options, dataset if dataset != trained_on.get('dataset') else '')
  model = saved_model.load(options.checkpoint)
  warn_if_fresh(options.checkpoint)
  tokenizer = Tokenizer(vocabulary, model.config.max_text_tokens)
  forward = forward_of(model, dtype=options.dtype)
  segmenter = Segmenter.from_model(model, tokenizer, dtype=options.dtype) if options.clicks else None
  with Watch():
    for split, source in sources.items():
      about = {'checkpoint': options.checkpoint, 'dataset': dataset, 'split': split, 'dtype': forward.dtype}
      _evaluate(forward, source, tokenizer, model.config, options, output, about)
      if segmenter:
        _click(segmenter, source, options, output, about)
  output.list_files()
  return 0


def _evaluate(
  forward: Forward,
  source: ReferringSource,
  tokenizer: Tokenizer,
  config: DitSamConfig,
  options: argparse.Namespace,
  output: '_Output',
  about: dict[str, Any],
) -> None:
  """Scores a split; the first host writes the results."""
  started = time.time()
  gallery = Gallery(config.pixel_mean, config.pixel_std)
  results = evaluate_split(
    forward,
    source,
    tokenizer,
    config,
    batch_size=options.batch_size,
    limit=options.limit,
    protocols=tuple(PROTOCOLS) if options.protocol == 'both' else [options.protocol],
    generalised=datasets.find(about['dataset'], options.data_dir)[0].generalised,
    gallery=gallery,
  )
  about['seconds'] = round(time.time() - started, 1)
  if not distributed.is_first():
    return
  heading = '{checkpoint} on {dataset} {split}'.format(**about)
  print(heading, results.table(), results.breakdown_table(), sep='\n\n', end='\n\n', flush=True)
  output.write(about['split'], results, about)
  headline = f'{heading}: mIoU {results.miou:.1f} %'
  output.write_picture(about['split'], 'predictions', gallery.panel(headline))
  if options.save_pictures:
    titles = worst_median_best(results.iou(), options.save_pictures)
    chosen = [[results.samples[place].position for place in places] for _, places in titles]
    pictures = pictures_of(forward, source, tokenizer, config, results, sum(chosen, []), batch_size=options.batch_size)
    sections = [(title, [pictures[position] for position in part]) for (title, _), part in zip(titles, chosen)]
    output.write_picture(about['split'], 'ranked', prediction_panel(sections, heading=headline))


def _click(
  segmenter: Segmenter, source: ReferringSource, options: argparse.Namespace, output: '_Output', about: dict[str, Any]
) -> None:
  """Corrects the masks of a split with clicks; the first host writes the results."""
  gallery = ClickGallery()
  results = evaluate_clicks(segmenter, source, options.clicks, limit=options.limit, offer=gallery.offer)
  if not distributed.is_first():
    return
  print(results.table(), end='\n\n', flush=True)
  output.write_clicks(about['split'], results)
  output.write_picture(about['split'], 'clicks', gallery.panel('{checkpoint} on {dataset} {split}'.format(**about)))


def _open(dataset: str, options: argparse.Namespace, trained_on: dict[str, Any]) -> dict[str, ReferringSource]:
  """Opens all splits before any work, so a wrong name is not found only after hours."""
  datasets.check_splits(dataset, options.splits, options.data_dir)
  # A model trained on shapes is evaluated on scenes like its training data.
  scenes = trained_on.get('scenes') if dataset == trained_on.get('dataset') else None
  return {split: datasets.open_split(dataset, options.data_dir, split, scenes=scenes) for split in options.splits}


class _Output:
  """The output folder: one metrics.json, and further files per split."""

  def __init__(self, options: argparse.Namespace, another: str):
    """Creates the folder before the evaluation, which may take hours. Raises UserError if it cannot be written to.

    Args:
      options: the command's.
      another: name of the data set, '' if it is the one that the model was trained on.
    """
    self._several = len(options.splits) > 1
    self._folder = _folder(options, another)
    self._figures: dict[str, Any] = {}
    self._written: dict[AnyPath, None] = {}
    if distributed.is_first():
      make_output_folder(self._folder)

  def write(self, split: str, results: Results, about: dict[str, Any]) -> None:
    """Writes the metrics and samples of a split; metrics.json keeps those of earlier splits."""
    self._figures[split] = about | results.to_json()
    self._write(split, 'samples', results.to_csv())

  def write_clicks(self, split: str, results: ClickResults) -> None:
    """Adds the figures of corrections to those of a split, and writes its samples."""
    self._figures[split] |= {'corrections': results.to_json()}
    self._write(split, 'clicks', results.to_csv())

  def _write(self, split: str, name: str, samples: str) -> None:
    """Writes metrics.json with all figures so far, and the samples of a split as CSV."""
    figures = self._figures[split]
    if self._several:
      figures = {**{name: figures[name] for name in ('checkpoint', 'dataset', 'dtype')}, 'splits': self._figures}
    metrics, table = self._folder / 'metrics.json', self._folder / self._named(split, name, 'csv')
    try:
      write_json(metrics, figures)
      self._written[metrics] = None
      write_text(table, samples)
      self._written[table] = None
    except OSError as error:
      raise UserError(
        f'results cannot be written to {str(self._folder)!r} ({error.strerror or error}); choose another --output'
      ) from error

  def write_picture(self, split: str, name: str, picture) -> None:
    """Writes a picture of a split. A failure is only a warning, because the metrics have been written."""
    file = self._folder / self._named(split, name, 'png')
    try:
      write_png(file, picture)
      self._written[file] = None
    except UserError as error:
      say(f'warning: {error}')

  def list_files(self) -> None:
    """Prints the files written, on the first host."""
    if self._written:
      print('written:', ', '.join(map(str, self._written)))

  def _named(self, split: str, name: str, ending: str) -> str:
    return f'{name}-{split}.{ending}' if self._several else f'{name}.{ending}'


def _folder(options: argparse.Namespace, another: str) -> AnyPath:
  """Different data sets, splits and limits get different folders, so none replaces the results of another."""
  if options.output:
    return any_path(options.output)
  limit = [f'limit-{options.limit}'] if options.limit else []
  what = '-'.join([*([another.replace('/', '-')] if another else []), *options.splits, *limit])
  if hub.is_address(options.checkpoint) or places.is_shipped(options.checkpoint):
    name = options.checkpoint.removeprefix(hub.SCHEME).strip('/').replace('/', '-')
    return Path('runs') / f'evaluation-{name}-{what}'
  return any_path(options.checkpoint) / f'evaluation-{what}'


def _parse(arguments: list[str] | None) -> argparse.Namespace:
  parser = Parser(
    prog='python -m ditsam_jax.evaluate',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    '--checkpoint',
    required=True,
    type=places.model,
    metavar='MODEL',
    help="a training run's workdir, a model's folder, hf://OWNER/NAME, or a shipped model: shapes",
  )
  parser.add_argument(
    '--dataset',
    help=f'{", ".join(datasets.NAMES)}, or the name of your own (default: the data set the model was trained on)',
  )
  parser.add_argument(
    '--splits',
    '--split',
    default='test',
    metavar='A,B',
    help='train, val, test, testA, ..., separated by commas (default: %(default)s)',
  )
  parser.add_argument(
    '--protocol',
    default='both',
    choices=(*PROTOCOLS, 'both'),
    help="how logits become masks at the image's size: as in the release, or as in most papers (default: %(default)s)",
  )
  parser.add_argument(
    '--data-dir',
    default='data',
    type=anywhere,
    metavar='DIR',
    help='folder of prepared data sets, may be gs://...; shapes is generated there (default: %(default)s)',
  )
  parser.add_argument(
    '--batch-size', type=int, default=64, metavar='N', help='batch size on each host (default: %(default)s)'
  )
  add_dtype(parser)
  parser.add_argument(
    '--limit', type=int, metavar='N', help='evaluate this many samples, evenly spread, instead of all'
  )
  parser.add_argument(
    '--save-pictures',
    type=int,
    default=0,
    metavar='N',
    help='write a sheet of the N worst, N median and N best samples (default: none)',
  )
  parser.add_argument(
    '--clicks',
    type=int,
    default=0,
    metavar='N',
    help='correct each mask with N clicks, and compare with clicks without the sentence (default: none)',
  )
  parser.add_argument(
    '--output',
    type=anywhere,
    metavar='DIR',
    help="default: evaluation-SPLITS in the checkpoint's folder, runs/evaluation-NAME-SPLITS for a shipped model; "
    'with the name of a data set that the model was not trained on, and with the limit',
  )
  distributed.add_flags(parser)
  options = parser.parse_args(arguments)
  options.splits = list(dict.fromkeys(filter(None, map(str.strip, options.splits.split(',')))))
  if not options.splits:
    raise UserError('--splits is empty; expected names of splits, such as --splits=val,test')
  for name, least, most in (
    ('batch_size', 1, None),
    ('limit', 1, None),
    ('save_pictures', 0, _MOST_PICTURES),
    ('clicks', 0, _MOST_CLICKS),
  ):
    value = getattr(options, name)
    if value is not None and (value < least or most is not None and value > most):
      raise UserError(
        f'--{name.replace("_", "-")}={value}: expected a whole number from {least}'
        f'{f" to {most}" if most is not None else ""}'
      )
  return options


if __name__ == '__main__':
  command_line.run(main)
