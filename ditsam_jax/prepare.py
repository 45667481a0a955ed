"""Prepares data for training and evaluation: your own images, or RefCOCO, RefCOCO+, RefCOCOg, gRefCOCO.

  python -m ditsam_jax.prepare --name=mine --annotations=mine.jsonl --images=photos --data-dir=data
  python -m ditsam_jax.prepare --dataset=refcoco --annotations=refer/data --images=train2014 --data-dir=data

Checks annotations, images and masks and writes them as a TFDS data set. Needs as much disk space as the images: 3 to
4 GB for RefCOCO. Rerun the command after an interruption.
"""

import argparse

from ditsam_jax import command_line, interruption
from ditsam_jax.data.refcoco import catalogue
from ditsam_jax.errors import UserError
from ditsam_jax.limits import MAX_PROCESSES
from ditsam_jax.options import Parser
from ditsam_jax.storage import places
from ditsam_jax.storage.paths import anywhere, local
from ditsam_jax.terminal import aligned, say

_OF_OWN = {
  'format': '',
  'masks': None,
  'seed': 0,
  'check': False,
  'model': 'shapes',
}  # options with --name alone, and their defaults


def main(arguments: list[str] | None = None) -> int:
  """Runs the command."""
  options = _parse(arguments)
  done = _own(options) if options.name else _refcoco(options)
  if done.left_out:
    print('left out:', *(f'{number:,} {kind}' for kind, number in done.left_out.items()), sep='\n  ')
  if done.seconds is not None:
    print(
      f'{done.seconds:.0f} s: {done.whole.images / done.seconds:.0f} images/s, {done.masks / done.seconds:.0f} masks/s'
    )
  if options.check:
    print('checked; no data set was written')
  elif done.seconds is None:
    print(f'unchanged: {done.directory} was already prepared; delete it to prepare it again')
  else:
    print('written:', done.directory)
  return 0


def _own(options: argparse.Namespace):
  with interruption.nothing_to_undo():
    from ditsam_jax.data.own import builder  # imports TFDS, which worker processes do not need

  done = builder.prepare(
    options.name,
    options.annotations,
    options.images,
    options.data_dir,
    format=options.format,
    masks_dir=options.masks,
    seed=options.seed,
    skip_bad=options.skip_bad,
    processes=options.processes,
    check_only=options.check,
    model=options.model,
    say=say,
    show=print,
  )
  print(_table(done))
  return done


def _refcoco(options: argparse.Namespace):
  dataset, split_by = catalogue.parse(f'{options.dataset}/{options.split_by}')
  with interruption.nothing_to_undo():
    from ditsam_jax.data.refcoco import builder

  done = builder.prepare(
    dataset,
    split_by,
    options.annotations,
    options.images,
    options.data_dir,
    skip_bad=options.skip_bad,
    processes=options.processes,
    say=say,
  )
  print(_table(done))
  differences = catalogue.compare(dataset, split_by, done.splits, done.whole)
  if differences:
    print('incomplete, compared with the published numbers:', *differences, sep='\n  ')
  else:
    print('complete: matches the published numbers')
  return done


def _table(done) -> str:
  shown = [name for name in catalogue.Counts._fields if getattr(done.whole, name) or not name.endswith('target')]
  rows = [['split', *(name.replace('_', '-') for name in shown)]]
  rows += [
    [split, *(f'{getattr(counts, name):,}' for name in shown)]
    for split, counts in [*done.splits.items(), ('all', done.whole)]
  ]
  return '\n'.join(aligned(rows))


def _partitions() -> str:
  return '; '.join(
    f'{name}: {", ".join(partition.name for partition in data_set.partitions)}'
    for name, data_set in catalogue.FAMILY.items()
  )


def _parse(arguments: list[str] | None) -> argparse.Namespace:
  parser = Parser(
    prog='python -m ditsam_jax.prepare',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  what = parser.add_mutually_exclusive_group(required=True)
  what.add_argument('--name', default='', help='name of your own data set: lower-case letters, digits, underscores')
  what.add_argument('--dataset', help=', '.join(catalogue.FAMILY))
  parser.add_argument(
    '--annotations',
    required=True,
    type=local,
    metavar='PATH',
    help="your annotation file or folder; for RefCOCO, the data set's folder with refs and instances.json, or its "
    'parent folder',
  )
  parser.add_argument(
    '--images',
    type=local,
    metavar='DIR',
    help='folder that image paths are relative to (default: the folder of the annotations); for RefCOCO, the folder of '
    'COCO_train2014_*.jpg',
  )
  parser.add_argument(
    '--data-dir',
    default='data',
    type=anywhere,
    metavar='DIR',
    help='folder of prepared data sets, may be gs://... (default: %(default)s)',
  )
  parser.add_argument('--skip-bad', action='store_true', help='skip bad data and write the rest')
  parser.add_argument(
    '--processes',
    type=int,
    metavar='N',
    help=f'worker processes, at most {MAX_PROCESSES} (default: one per core, at most 16; 0: none)',
  )
  own = parser.add_argument_group('with --name')
  own.add_argument('--check', action='store_true', help='check and report, but write no data set')
  own.add_argument('--format', default='', help='jsonl, csv, coco, sa2va, parquet or folder (default: detected)')
  own.add_argument(
    '--masks',
    type=local,
    metavar='DIR',
    help='folder that mask paths are relative to (default: the folder of the annotations)',
  )
  own.add_argument(
    '--seed', type=int, default=0, help='seed of random splits if the annotations have none (default: %(default)s)'
  )
  own.add_argument(
    '--model',
    default='shapes',
    type=places.model,
    metavar='MODEL',
    help='the model that training starts from; the report uses its tokenizer (default: %(default)s)',
  )
  refcoco = parser.add_argument_group('with --dataset')
  refcoco.add_argument('--split-by', default='', metavar='WHO', help=f'{_partitions()} (default: the first)')
  options = parser.parse_args(arguments)
  if options.dataset:
    if options.images is None:
      raise UserError('--images is missing; --help lists the options')
    for name, default in _OF_OWN.items():
      if getattr(options, name) != default:
        raise UserError(f'--{name} goes with --name, not with --dataset={options.dataset}')
  elif options.split_by:
    raise UserError(f'--split-by goes with --dataset, not with --name={options.name}')
  return options


if __name__ == '__main__':
  command_line.run(main)
