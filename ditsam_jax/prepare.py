"""Prepares RefCOCO, RefCOCO+, RefCOCOg or gRefCOCO for training and evaluation.

  python -m ditsam_jax.prepare --dataset=refcoco --annotations=refer/data --images=train2014 --data-dir=data

Checks the official downloads (refs, instances.json, COCO's train2014 images) and writes them as a TFDS data set.
Needs as much disk space as the data set's images, 3 to 4 GB. Rerun the command after an interruption.
"""

import argparse

from ditsam_jax import command_line, interruption
from ditsam_jax.data.refcoco import catalogue
from ditsam_jax.limits import MAX_PROCESSES
from ditsam_jax.options import Parser
from ditsam_jax.storage.paths import local
from ditsam_jax.terminal import say


def main(arguments: list[str] | None = None) -> int:
  """Runs the command."""
  options = _parse(arguments)
  dataset, split_by = catalogue.parse(f'{options.dataset}/{options.split_by}')
  with interruption.nothing_to_undo():
    from ditsam_jax.data.refcoco import builder  # worker processes import this file, and need not wait for TFDS

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
  if done.left_out:
    print('left out:', *(f'{number:,} {kind}' for kind, number in done.left_out.items()), sep='\n  ')
  if done.seconds is not None:
    print(
      f'{done.seconds:.0f} s: {done.whole.images / done.seconds:.0f} images/s, {done.masks / done.seconds:.0f} masks/s'
    )
  if done.seconds is None:
    print(f'unchanged: {done.directory} was already prepared; delete it to prepare it again')
  else:
    print('written:', done.directory)
  return 0


def _table(done) -> str:
  shown = [name for name in catalogue.Counts._fields if getattr(done.whole, name) or not name.endswith('target')]
  rows = [['split', *(name.replace('_', '-') for name in shown)]]
  rows += [
    [split, *(f'{getattr(counts, name):,}' for name in shown)]
    for split, counts in [*done.splits.items(), ('all', done.whole)]
  ]
  widths = [max(map(len, column)) for column in zip(*rows)]
  return '\n'.join(
    '  '.join(text.ljust(width) if i == 0 else text.rjust(width) for i, (text, width) in enumerate(zip(row, widths)))
    for row in rows
  )


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
  parser.add_argument('--dataset', required=True, help=', '.join(catalogue.FAMILY))
  parser.add_argument('--split-by', default='', metavar='WHO', help=f'{_partitions()} (default: the first)')
  parser.add_argument(
    '--annotations',
    required=True,
    type=local,
    metavar='DIR',
    help="the data set's folder with refs and instances.json, or its parent folder",
  )
  parser.add_argument('--images', required=True, type=local, metavar='DIR', help='folder of COCO_train2014_*.jpg')
  parser.add_argument(
    '--data-dir', default='data', type=local, metavar='DIR', help='folder of prepared data sets (default: %(default)s)'
  )
  parser.add_argument('--skip-bad', action='store_true', help='skip bad images, refs and sentences and write the rest')
  parser.add_argument(
    '--processes',
    type=int,
    metavar='N',
    help=f'worker processes, at most {MAX_PROCESSES} (default: one per core, at most 16; 0: none)',
  )
  return parser.parse_args(arguments)


if __name__ == '__main__':
  command_line.run(main)
