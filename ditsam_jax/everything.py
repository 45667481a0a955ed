"""Segments everything in images, or everything that a phrase refers to.

  python -m ditsam_jax.everything --image=photos --output=runs/everything
  python -m ditsam_jax.everything --checkpoint=models/sam --image photo.jpg --crop-n-layers=1 --json=results.jsonl
  python -m ditsam_jax.everything --image scene.png --text='the red circles' --text-checkpoint=shapes

For each image, writes a picture of all masks, and the masks in the format of Meta's amg.py: a folder of PNG files with
metadata.csv, or one file of run lengths with --convert-to-rle. Rerun to resume; finished images are skipped.
"""

import argparse
import collections
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ditsam_jax import command_line, mask_options
from ditsam_jax.errors import UserError
from ditsam_jax.inference.mask_generator import SamAutomaticMaskGenerator
from ditsam_jax.inference.prompts import Prompt, check_text, checked
from ditsam_jax.jobs.everything_files import Everything, EverythingFiles
from ditsam_jax.jobs.file_names import FileNames, is_result
from ditsam_jax.jobs.image_paths import ImagePaths
from ditsam_jax.jobs.job import Job
from ditsam_jax.jobs.json_lines import JsonLines
from ditsam_jax.jobs.outputs import made_by
from ditsam_jax.jobs.requests import Combinations, Request
from ditsam_jax.jobs.running import Asked, run, run_share
from ditsam_jax.models.weights import dtype_named
from ditsam_jax.options import Parser, add_checkpoint, add_dtype, add_image
from ditsam_jax.parallel import distributed
from ditsam_jax.storage import places
from ditsam_jax.storage.description import check_reads_points, read_config
from ditsam_jax.storage.paths import local
from ditsam_jax.terminal import printable


def main(arguments: list[str] | None = None) -> int:
  """Runs the command; returns 0 if all images succeeded, otherwise 2."""
  options = _parse(arguments)
  settings = mask_options.settings(options)
  distributed.initialise(options)
  check_reads_points(options.checkpoint)
  prompts = _prompts(options)
  names = FileNames(Path(options.output)) if options.pictures else None
  job = Job(Combinations(ImagePaths(options.image, lambda path: is_result(path, Path(options.output))), prompts), names)
  dtype = dtype_named(options.dtype, jax.default_backend()).name
  files = {'convert_to_rle': options.convert_to_rle} if options.pictures else {}
  reader = {'text_model': made_by(options.text_checkpoint, dtype)['model']} if options.text_checkpoint else {}
  how = made_by(options.checkpoint, dtype, **settings, **files, **reader)
  output = EverythingFiles(names and names.of, how, convert_to_rle=options.convert_to_rle)
  failed = run_share(
    job,
    output,
    how,
    lambda lines: _run(job, output, lines, options, settings),
    json=options.json,
    folder=options.output if options.pictures else None,
  )
  return 2 if failed else 0


def _run(
  job: Job, output: EverythingFiles, lines: JsonLines | None, options: argparse.Namespace, settings: dict[str, Any]
) -> bool:
  """Runs the remaining requests; returns whether any failed."""
  generator = SamAutomaticMaskGenerator(
    options.checkpoint, **settings, output_mode='coco_rle', text_model=options.text_checkpoint, dtype=options.dtype
  )
  tokenizer = generator.tokenizer

  def everything(asked: Asked) -> Iterator[tuple[Request, Everything]]:
    waiting: collections.deque[tuple[Request, np.ndarray]] = collections.deque()

    def noted() -> Iterator[tuple[np.ndarray, str | None]]:
      for request, image in asked:
        waiting.append((request, image))
        yield image, request.prompt.text

    for records in generator.stream(noted()):
      request, image = waiting.popleft()
      text = request.prompt.text
      if tokenizer is None or text is None:
        yield request, Everything(image, records)
      else:
        yield request, Everything(image, records, tuple(tokenizer.unknown(text)), tokenizer.cut(text))

  too_small = _too_small(options.crop_n_layers)
  return run('everything', job, output, lines, everything, lambda found: found.image.nbytes, too_small)


def _prompts(options: argparse.Namespace) -> list[Prompt]:
  """Returns the prompts to segment in each image; one that is empty for everything."""
  if not options.text:
    return [Prompt()]
  config = read_config(options.text_checkpoint or options.checkpoint)
  for text in options.text:
    check_text(text)
    if config.text_encoder is None:
      name = printable(options.text_checkpoint or options.checkpoint)
      raise UserError(f'--text={text!r}: {name} has no text encoder; use one that has: --text-checkpoint=shapes')
  return [checked(Prompt(text), config) for text in dict.fromkeys(options.text)]


def _too_small(layers: int):
  """Returns a check for images that are too small for `layers` of crops."""

  def problem(request: Request, image: np.ndarray) -> UserError | None:
    height, width = image.shape[:2]
    if min(height, width) >= 4**layers:
      return None
    crops = f'{layers} layer{"s" if layers > 1 else ""} of crops'
    return UserError(f'image {printable(request.name)}: {width} x {height} pixels are too few for {crops}')

  return problem


def _parse(arguments: list[str] | None) -> argparse.Namespace:
  parser = Parser(
    prog='python -m ditsam_jax.everything',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  what = parser.add_argument_group('what to segment')
  add_image(what, required=True)
  what.add_argument(
    '--text',
    action='append',
    default=[],
    help='segment only the objects that this phrase refers to; repeatable',
  )
  how = parser.add_argument_group('how')
  add_checkpoint(how, 'sam_shapes_multimask', 'model that finds objects from points: ')
  how.add_argument(
    '--text-checkpoint',
    type=places.model,
    metavar='MODEL',
    help='model that reads --text, such as shapes (default: that of --checkpoint)',
  )
  add_dtype(how)
  where = parser.add_argument_group('results')
  where.add_argument(
    '--output',
    default='runs/everything',
    type=local,
    metavar='DIR',
    help='folder of the pictures and masks (default: %(default)s)',
  )
  where.add_argument(
    '--convert-to-rle', action='store_true', help="one JSON file of COCO's run lengths per image, no folder of masks"
  )
  where.add_argument('--json', type=local, metavar='FILE', help='write JSON lines, one per image, with run lengths')
  where.add_argument('--no-pictures', dest='pictures', action='store_false', help='write --json only, for large jobs')
  mask_options.add_flags(parser)
  distributed.add_flags(parser)
  options = parser.parse_args(arguments)
  _check(options)
  return options


def _check(options: argparse.Namespace) -> None:
  """Raises UserError for inconsistent options."""
  if options.text_checkpoint and not options.text:
    raise UserError('--text-checkpoint without --text: nothing to read; add --text=PHRASE, or omit it')
  if options.json == '-':
    raise UserError("'-' as a file: results are resumed from --json; name a file")
  if not options.pictures and not options.json:
    raise UserError('--no-pictures without --json: nothing would be written; add --json=FILE')
  if not options.pictures and options.convert_to_rle:
    raise UserError('--convert-to-rle with --no-pictures: --json already contains run lengths; omit one')


if __name__ == '__main__':
  command_line.run(main)
