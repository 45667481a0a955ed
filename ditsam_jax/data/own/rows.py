"""Reads JSON lines and CSV, line by line; each row is an entry."""

import csv
import itertools
from collections.abc import Iterator
from typing import Any

from ditsam_jax.data.own.entries import FIELDS, Context, Entry, Rejected, entry_of
from ditsam_jax.data.preparation import problems
from ditsam_jax.errors import UserError
from ditsam_jax.storage.files import open_regular, parse_json
from ditsam_jax.terminal import listed, printable

LONGEST_LINE = 2**24  # bytes; run lengths as a list of numbers take a few hundred kB
MOST_BYTES = 2**33  # maximum file size; the file is never in memory as a whole


def read_json_lines(context: Context) -> Iterator[Entry]:
  """Yields the entries of a file with a JSON object per line. Bad lines are reported with their numbers."""
  for number, line in _lines(context):
    place = f'line {number:,}'
    try:
      row = parsed(line)
      entry = entry_of(row, place)
    except Rejected as error:
      context.reject(place, error)
      continue
    context.ignore(row, FIELDS)
    yield entry


def read_csv(context: Context) -> Iterator[Entry]:
  """Yields the entries of a table with a header. `mask` holds a path or JSON: null, polygons, run lengths."""
  place = 'line 1'
  csv.field_size_limit(LONGEST_LINE)
  lines = (_text(line, number) for number, line in _lines(context, blank=True))
  name = printable(context.annotations)
  try:
    first = next(lines, '')
    rows = csv.reader(itertools.chain([first], lines), delimiter=delimiter_of(first), strict=True)
    header = [column.strip() for column in next(rows, [])]
    missing = [column for column in ('image', 'text', 'mask') if column not in header]
    if missing or len(set(header)) < len(header):
      raise UserError(
        f'{name}: the first line names the columns {listed(header) or "(none)"}; expected image, text and mask, each '
        f'once, and optionally split, id and category'
      )
    for row in rows:
      place = f'line {rows.line_num:,}'
      if not row:
        continue
      try:
        if len(row) != len(header):
          raise Rejected(problems.BAD_LINE, f'{len(row)} values for {len(header)} columns')
        values: dict[str, Any] = dict(zip(header, row))
        yield _entry_of_cells(values, place)
      except Rejected as error:
        context.reject(place, error)
        continue
      context.ignore(values, FIELDS)
  except csv.Error as error:
    raise UserError(f'{name} after {place}: not CSV ({error}); quote texts with commas') from error
  except Rejected as error:
    raise UserError(f'{name}: {error}') from error


def delimiter_of(header: str) -> str:
  """Returns the delimiter of a CSV header: comma, semicolon or tab."""
  return max(',;\t', key=header.count)


def _entry_of_cells(values: dict[str, Any], place: str) -> Entry:
  mask = values['mask'].strip()
  if not mask:
    raise Rejected(problems.NO_MASK, "'mask' is empty; write null if the sentence refers to nothing in the image")
  if mask == 'null' or mask[0] in '[{':
    values = values | {'mask': parsed(mask.encode())}
  text = values['text']
  if text.lstrip().startswith('["'):
    values = values | {'text': parsed(text.encode())}
  return entry_of(values, place)


def _text(line: bytes, number: int) -> str:
  try:
    return line.decode('utf-8')
  except UnicodeDecodeError as error:
    raise Rejected(problems.BAD_LINE, f'line {number:,} is not UTF-8 text; save it as UTF-8') from error


def _lines(context: Context, *, blank: bool = False) -> Iterator[tuple[int, bytes]]:
  """Yields line numbers, from 1, and lines. Reports and skips lines that are too long."""
  name = printable(context.annotations)
  try:
    with open_regular(context.annotations, most_bytes=MOST_BYTES) as stream:
      number = 0
      while line := stream.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
          context.reject(f'line {number:,}', Rejected(problems.BAD_LINE, f'longer than {LONGEST_LINE:,} bytes'))
          while line and not line.endswith(b'\n'):
            line = stream.readline(LONGEST_LINE)
          continue
        if number == 1:
          line = line.removeprefix(b'\xef\xbb\xbf')
        if blank or line.strip():
          yield number, line
  except OSError as error:
    raise UserError(f'{name}: cannot be read ({error.strerror or error})') from error


def parsed(line: bytes) -> Any:
  """Parses JSON with unique keys, valid Unicode and finite numbers. Raises Rejected."""
  try:
    return parse_json(line.rstrip())
  except ValueError as error:
    raise Rejected(problems.BAD_LINE, str(error).removeprefix('is ')) from error
