"""Serves a web page and an HTTP API for a model.

  python -m ditsam_jax.serve --checkpoint=shapes
  python -m ditsam_jax.serve --checkpoint=runs/ldit --port=8080 --token-file=token.txt --host=0.0.0.0

The page is at http://127.0.0.1:8000/, the API documentation at /docs. Requires the extra `serve`.
"""

import argparse
import dataclasses
import os
import re
import secrets
from typing import NamedTuple

from ditsam_jax import command_line, mask_options
from ditsam_jax.errors import UserError
from ditsam_jax.inference.prompts import MOST_POINTS
from ditsam_jax.inference.segmenter import Segmenter
from ditsam_jax.limits import MAX_PIXELS
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
_HOST_NAME = re.compile(r'[A-Za-z0-9._-]+|[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*')  # or an IPv6 address
_MIB = 2**20


class _Bound(NamedTuple):
  """An option for a field of `Limits`, in multiples of `unit`."""

  option: str
  field: str
  unit: float
  low: float
  high: float
  meaning: str
  kind: type[int] | type[float] = float


_BOUNDS = (
  _Bound('--max-megapixels', 'pixels', 1e6, 1e-4, MAX_PIXELS / 1e6, 'pixels of an image, in millions'),
  _Bound('--max-upload-mib', 'upload_bytes', _MIB, 1e-3, 2**10, 'size of an image file'),
  _Bound('--keep-mib', 'kept_bytes', _MIB, 1, 2**20, 'memory for uploaded images; the least recently used are evicted'),
  _Bound('--keep-minutes', 'kept_seconds', 60, 0.01, 7 * 24 * 60, 'time that an unused image is stored'),
  _Bound('--timeout', 'seconds', 1, 0.1, 3600, 'seconds to answer a request'),
  _Bound('--everything-timeout', 'everything_seconds', 1, 0.1, 86400, 'the same for everything in an image'),
  _Bound('--batch-wait-ms', 'batch_wait', 1e-3, 0, 1000, 'milliseconds that a prompt waits for others to form a batch'),
  _Bound('--max-points', 'points', 1, 1, MOST_POINTS, 'points per prompt; more mean more programs to compile', int),
  _Bound('--max-queue', 'queue', 1, 1, 100_000, 'maximum number of waiting prompts', int),
)


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
  limits, values = Limits(), {}
  for bound in _BOUNDS:
    value = getattr(options, bound.field)
    if not bound.low <= value <= bound.high:
      raise UserError(f'{bound.option}={value:g}: expected {bound.low:g} to {bound.high:g}')
    value *= bound.unit
    values[bound.field] = round(value) if isinstance(getattr(limits, bound.field), int) else value
  most = values['queue']
  return dataclasses.replace(
    limits, **values, per_client=min(limits.per_client, most), prompts=min(limits.prompts, most)
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
  for bound in _BOUNDS:
    default = getattr(Limits(), bound.field) / bound.unit
    bounds.add_argument(
      bound.option,
      dest=bound.field,
      type=bound.kind,
      default=bound.kind(default),
      metavar='N',
      help=f'{bound.meaning} (default: {default:g})',
    )
  mask_options.add_flags(parser, _MASKS)
  options = parser.parse_args(arguments)
  if not 0 <= options.port <= 65535:
    raise UserError(f'--port={options.port}: expected 0 to 65535')
  check_batch_size(options)
  for name in options.allow_host:
    if not _HOST_NAME.fullmatch(name):
      raise UserError(
        f"--allow-host='{printable(name)}': expected a host's name without scheme, port or path, such as "
        'masks.example.com'
      )
  options.allow_host = [name.lower() for name in options.allow_host]
  return options


if __name__ == '__main__':
  command_line.run(main)
