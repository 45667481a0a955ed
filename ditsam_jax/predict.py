"""Segments image files from text, points and boxes, in any combination.

  python -m ditsam_jax.predict --image photo.jpg --text='the red circle'
  python -m ditsam_jax.predict --image photos --point=120,80 --point=40,60,0 --json=results.jsonl
  python -m ditsam_jax.predict --prompts=prompts.jsonl --json=results.jsonl --no-pictures

For each result, writes two PNG files at the image's own size (the mask as 0/255, and the image with the mask drawn over
it) and prints a line, or writes a JSON line with --json. Rerun the command to resume; finished requests are skipped.
"""

import argparse
import collections
import os
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from ditsam_jax import command_line
from ditsam_jax.errors import UserError
from ditsam_jax.inference.prompts import Prompt
from ditsam_jax.inference.results import Prediction
from ditsam_jax.inference.segmenter import Segmenter
from ditsam_jax.jobs.file_names import FileNames, is_result
from ditsam_jax.jobs.image_paths import ImagePaths
from ditsam_jax.jobs.job import Job, Source
from ditsam_jax.jobs.json_lines import JsonLines
from ditsam_jax.jobs.outputs import Output, made_by
from ditsam_jax.jobs.requests import Combinations, PromptFile, Request, prompts_of
from ditsam_jax.jobs.running import Asked, run, run_share
from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.models.weights import dtype_named
from ditsam_jax.options import Parser, add_batch_size, add_checkpoint, add_dtype, add_image, check_batch_size
from ditsam_jax.parallel import distributed
from ditsam_jax.storage.description import read_config
from ditsam_jax.storage.paths import local
from ditsam_jax.terminal import printable


def main(arguments: list[str] | None = None) -> int:
  """Runs the command; returns 0 if all requests succeeded, otherwise 2."""
  options = _parse(arguments)
  distributed.initialise(options)
  config = read_config(options.checkpoint)
  names = FileNames(Path(options.output)) if options.pictures else None
  job = Job(_source(options, config), names)
  dtype = dtype_named(options.dtype, jax.default_backend()).name
  how = made_by(options.checkpoint, dtype, multimask=options.multimask)
  output = Output(names and names.of, how)
  at_once = min(options.batch_size, job.count)  # of the whole job, so results do not depend on hosts or resuming
  failed = run_share(
    job,
    output,
    how,
    lambda lines: _run(job, output, lines, options, at_once),
    json=options.json,
    folder=options.output if options.pictures else None,
  )
  return 2 if failed else 0


def _run(job: Job, output: Output, lines: JsonLines | None, options: argparse.Namespace, at_once: int) -> bool:
  """Runs the remaining requests; returns whether any failed."""
  segmenter = Segmenter(options.checkpoint, batch_size=at_once, dtype=options.dtype)

  def predictions(asked: Asked) -> Iterator[tuple[Request, Prediction]]:
    waiting: collections.deque[Request] = collections.deque()

    def noted() -> Iterator[tuple[np.ndarray, Prompt]]:
      for request, image in asked:
        waiting.append(request)
        yield image, request.prompt

    for prediction in segmenter.stream(noted()):
      yield waiting.popleft(), prediction

  return run('predict', job, output, lines, predictions, _size, _outside)


def _size(prediction: Prediction) -> int:
  return prediction.image.nbytes + prediction.masks.nbytes + prediction.logits.nbytes


def _outside(request: Request, image: np.ndarray) -> UserError | None:
  """Returns an error if a point or the entire box is outside the image."""
  height, width = image.shape[:2]
  points, box = request.prompt.points, request.prompt.box
  size = f'is outside the image, {width} x {height} pixels'
  name = f'image {printable(request.name)}'
  if points is not None and len(outside := points[((points < 0) | (points > (width, height))).any(1)]):
    return UserError(f'{name}: point {outside[0][0]:g},{outside[0][1]:g} {size}')
  if box is not None and (box[2] < 0 or box[3] < 0 or box[0] > width or box[1] > height):
    return UserError(f'{name}: box {",".join(f"{number:g}" for number in box)} {size}')
  return None


def _source(options: argparse.Namespace, config: DitSamConfig) -> Source:
  if options.prompts is not None:
    return PromptFile(options.prompts, config, images_dir=options.images_dir, multimask=options.multimask)
  prompts = prompts_of(options.text, options.point, options.box, config, multimask=options.multimask)
  return Combinations(ImagePaths(options.image, lambda path: is_result(path, Path(options.output))), prompts)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
  parser = Parser(
    prog='python -m ditsam_jax.predict',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  what = parser.add_argument_group('what to segment')
  add_image(what)
  what.add_argument('--text', action='append', default=[], help='a text prompt; repeatable')
  what.add_argument(
    '--point', action='append', default=[], metavar='X,Y[,0]', help='a point on the object, with ,0 off it; repeatable'
  )
  what.add_argument(
    '--box', action='append', default=[], metavar='X0,Y0,X1,Y1', help='a box around the object, in pixels'
  )
  what.add_argument(
    '--prompts',
    type=local,
    metavar='FILE',
    help='JSON lines instead of the above: image, and any of text, points, labels, box, id',
  )
  what.add_argument(
    '--images-dir', type=local, metavar='DIR', help="folder of the images named in FILE (default: FILE's folder)"
  )
  how = parser.add_argument_group('how')
  add_checkpoint(how, 'shapes')
  add_dtype(how)
  add_batch_size(how)
  how.add_argument('--multimask', action='store_true', help='three candidate masks per prompt; --json has all')
  where = parser.add_argument_group('results')
  where.add_argument(
    '--output',
    default='runs/predictions',
    type=local,
    metavar='DIR',
    help='folder of the pictures (default: %(default)s)',
  )
  where.add_argument('--json', type=local, metavar='FILE', help='write JSON lines: run lengths, boxes, scores, ...')
  where.add_argument('--no-pictures', dest='pictures', action='store_false', help='write the JSON only, for large jobs')
  distributed.add_flags(parser)
  options = parser.parse_args(arguments)
  _check(options)
  return options


def _check(options: argparse.Namespace) -> None:
  """Raises UserError for inconsistent options."""
  if options.prompts is not None:
    given = [f'--{name}' for name in ('image', 'text', 'point', 'box') if getattr(options, name)]
    if given:
      raise UserError(
        f'--prompts with {", ".join(given)}: expected one or the other; the file contains images and prompts'
      )
    if options.json and os.path.realpath(options.json) == os.path.realpath(options.prompts):
      raise UserError(f'--json={printable(options.json)}: this is the prompts file; choose another')
  else:
    if not options.image:
      raise UserError('no images; give --image, or --prompts')
    if options.images_dir is not None:
      raise UserError('--images-dir without --prompts: it applies to the images in a prompts file')
  if '-' in (options.json, options.prompts):
    raise UserError("'-' as a file: results are resumed from --json, and --prompts is read twice; name a file")
  if options.images_dir is not None and not os.path.isdir(options.images_dir):
    raise UserError(f'--images-dir={printable(options.images_dir)}: no such folder')
  if len(options.box) > 1:
    raise UserError('--box given twice: expected one; for one result per box, use --prompts')
  options.box = options.box[0] if options.box else None
  check_batch_size(options)
  if not options.pictures and not options.json:
    raise UserError('--no-pictures without --json: nothing would be written; add --json=FILE')


if __name__ == '__main__':
  command_line.run(main)
