"""Serves a web page and an HTTP API for a model.

  python -m ditsam_jax.serve --checkpoint=shapes
  python -m ditsam_jax.serve --checkpoint=runs/ldit --port=8080 --token-file=token.txt --host=0.0.0.0

The page is at http://127.0.0.1:8000/, the API documentation at /docs. Requires pip install 'ditsam_jax[serve]'.
"""

import argparse
import os
import secrets

from ditsam_jax import command_line, mask_options
from ditsam_jax.errors import UserError
from ditsam_jax.inference.prompts import MOST_POINTS
from ditsam_jax.inference.segmenter import Segmenter
from ditsam_jax.options import Parser, add_batch_size, add_checkpoint, add_dtype, check_batch_size
from ditsam_jax.serving import server
from ditsam_jax.serving.app import Service
from ditsam_jax.serving.guard import LOOPBACK
from ditsam_jax.serving.images import embeddings_bytes
from ditsam_jax.serving.limits import Limits
from ditsam_jax.storage.description import read_config
from ditsam_jax.storage.files import read_bytes
from ditsam_jax.storage.paths import local
from ditsam_jax.terminal import printable, say

# Fields of MaskSettings; crops refuse small images, which clients could not avoid.
_MASKS = ('points_per_side', 'pred_iou_thresh', 'stability_score_thresh', 'box_nms_thresh', 'min_mask_region_area')
_SHORTEST_TOKEN = 16
_MIB = 2**20


def main(arguments: list[str] | None = None) -> int:
  """Runs the service until Ctrl-C or SIGTERM; returns the exit status."""
  options = _parse(arguments)
  limits = _limits(options)
  masks = mask_options.settings(options, _MASKS)
  token = _token(options)
  config = read_config(options.checkpoint)
  _check_room(limits, config)
  listening = server.listen(options.host, options.port)
  port = listening.getsockname()[1]
  loopback = options.host in LOOPBACK
  if not loopback:
    guarded = 'anyone with the token' if token else 'anyone, without a token (set one with --token-file)'
    say(f'warning: --host={printable(options.host)}: the service can be reached over the network by {guarded}')
  hosts = (*LOOPBACK, *options.allow_host) if loopback or options.allow_host else None
  name = os.path.basename(os.path.normpath(options.checkpoint))
  segmenter = Segmenter(options.checkpoint, batch_size=options.batch_size, dtype=options.dtype)
  host = f'[{options.host}]' if ':' in options.host else options.host
  service = Service(segmenter, printable(name), limits, token=token, masks=masks)
  return server.run(service, listening, hosts, f'http://{host}:{port}/')


def _limits(options: argparse.Namespace) -> Limits:
  limits = Limits()
  for name, low, high in (
    ('max_megapixels', 1e-4, 89.478485),
    ('max_upload_mib', 1e-3, 2**10),
    ('keep_mib', 1, 2**20),
    ('keep_minutes', 0.01, 7 * 24 * 60),
    ('max_points', 1, MOST_POINTS),
    ('max_queue', 1, 100_000),
    ('timeout', 0.1, 3600),
    ('batch_wait_ms', 0, 1000),
  ):
    value = getattr(options, name)
    if not low <= value <= high:
      raise UserError(f'--{name.replace("_", "-")}={value:g}: expected {low:g} to {high:g}')
  return Limits(
    upload_bytes=round(options.max_upload_mib * _MIB),
    pixels=round(options.max_megapixels * 1e6),
    kept_bytes=round(options.keep_mib * _MIB),
    kept_seconds=options.keep_minutes * 60,
    points=options.max_points,
    queue=options.max_queue,
    per_client=min(limits.per_client, options.max_queue),
    prompts=min(limits.prompts, options.max_queue),
    seconds=options.timeout,
    batch_wait=options.batch_wait_ms / 1000,
  )


def _check_room(limits: Limits, config) -> None:
  """Raises UserError unless the largest accepted image fits into the store; clients could not avoid such refusals."""
  largest = 3 * limits.pixels + 12 * config.image_size**2 + embeddings_bytes(config)
  if largest > limits.kept_bytes:
    raise UserError(
      f'--keep-mib={limits.kept_bytes / _MIB:g}: an image of {limits.pixels / 1e6:g} megapixels takes '
      f'{largest / _MIB:.0f} MiB; use at least that, or a smaller --max-megapixels'
    )


def _token(options: argparse.Namespace) -> str | None:
  if options.token is not None and options.token_file is not None:
    raise UserError('--token and --token-file: expected one of them')
  token, source = options.token, '--token'
  if options.token_file is not None:
    source = f'--token-file={printable(options.token_file)}'
    token = read_bytes(options.token_file, most_bytes=4096).decode('utf-8', 'replace').strip()
  if token is None:
    return None
  if len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or ' ' in token:
    example = secrets.token_urlsafe(24)
    raise UserError(
      f'{source}: expected at least {_SHORTEST_TOKEN} characters of ASCII without spaces, such as {example}'
    )
  return token


def _parse(arguments: list[str] | None) -> argparse.Namespace:
  parser = Parser(
    prog='python -m ditsam_jax.serve', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  what = parser.add_argument_group('model')
  add_checkpoint(what, 'shapes')
  add_dtype(what)
  add_batch_size(what)
  where = parser.add_argument_group('access')
  where.add_argument(
    '--host', default='127.0.0.1', help='address to listen at (default: %(default)s, this machine only)'
  )
  where.add_argument('--port', type=int, default=8000, help='port; 0 takes a free one (default: %(default)s)')
  where.add_argument(
    '--allow-host',
    action='append',
    default=[],
    metavar='NAME',
    help='host name that clients may use for this service, such as that of a proxy; repeatable',
  )
  where.add_argument('--token', help='token that clients must send; visible in the process list')
  where.add_argument('--token-file', type=local, metavar='FILE', help='file with the token')
  bounds = parser.add_argument_group('limits')
  for name, default, meaning in (
    ('--max-megapixels', 32, 'pixels of an image, in millions'),
    ('--max-upload-mib', 20, 'size of an image file'),
    ('--keep-mib', 1024, 'memory for uploaded images; the least recently used are evicted'),
    ('--keep-minutes', 60, 'time that an unused image is stored'),
    ('--timeout', 30, 'seconds to answer a request'),
    ('--batch-wait-ms', 3, 'milliseconds that a prompt waits for others to form a batch'),
  ):
    bounds.add_argument(name, type=float, default=default, metavar='N', help=f'{meaning} (default: %(default)s)')
  for name, default, meaning in (
    ('--max-points', 30, 'points per prompt; more points mean more programs to compile at the start'),
    ('--max-queue', 256, 'maximum number of waiting prompts'),
  ):
    bounds.add_argument(name, type=int, default=default, metavar='N', help=f'{meaning} (default: %(default)s)')
  mask_options.add_flags(parser, _MASKS)
  options = parser.parse_args(arguments)
  if not 0 <= options.port <= 65535:
    raise UserError(f'--port={options.port}: expected 0 to 65535')
  check_batch_size(options)
  options.allow_host = [name.lower() for name in options.allow_host]
  return options


if __name__ == '__main__':
  command_line.run(main)
