"""Printing to the terminal."""

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

_LONGEST = 200  # characters of a name; longer ones lose their middle
_HARMLESS = '\u200c\u200d'  # joiners: not "printable" to Python, but part of Persian words and emoji


def say(text: str) -> None:
  """Prints a line to stderr and flushes it. Progress and warnings go to stderr, results to stdout."""
  print(text, file=sys.stderr, flush=True)


def printable(name: object, longest: int = _LONGEST) -> str:
  """Escapes a name from a file, a path or an argument for printing.

  Escapes line breaks, control characters, bidirectional overrides and undecodable bytes, so a name cannot forge a line
  of output. Removes the middle of names longer than `longest`.
  """
  text = str(name)
  if len(text) > longest:
    half = longest // 2
    text = f'{text[:half]}...{text[-half:]}'
  if text.isprintable():
    return text
  return ''.join(c if c.isprintable() or c in _HARMLESS else c.encode('unicode_escape').decode() for c in text)


def listed(items: Iterable[object], most: int = 5) -> str:
  """Lists the first items, escaped, and counts the rest: 'a, b, c and 7 more'."""
  items = list(items)
  shown = ', '.join(printable(item) for item in items[:most])
  return f'{shown} and {len(items) - most:,} more' if len(items) > most else shown


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
  """Formats the rows of a table with aligned columns: the first `left` to the left, the others to the right."""
  widths = [max(map(len, column)) for column in zip(*rows)]
  return [
    '  '.join(
      cell.ljust(width) if i < left else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))
    ).rstrip()
    for row in rows
  ]


def truncated(text: str, width: float, measure: Callable[[str], float] = len) -> str:
  """Truncates text to `width`, ending it in '…'; `measure` returns a text's width, by default in characters."""
  if measure(text) <= width:
    return text
  return f'{text[: fitting_length(text, width - measure("…"), measure)].rstrip()}…'


def fitting_length(text: str, width: float, measure: Callable[[str], float] = len) -> int:
  """The number of leading characters that fit `width`, by binary search."""
  low, high = 0, len(text)
  while low < high:
    middle = (low + high + 1) // 2
    low, high = (middle, high) if measure(text[:middle]) <= width else (low, middle - 1)
  return low


def progress(
  total: int, description: str, unit: str = '', *, initial: int = 0, shown: bool = True, leave: bool = True
) -> Any:
  """Shows progress on stderr: a tqdm bar on a terminal, or else a line every half minute."""
  if shown and not sys.stderr.isatty():
    return _Lines(total, description, unit, initial)
  import tqdm  # imported late: commands import this module before anything slow

  return tqdm.tqdm(
    total=total,
    initial=initial,
    desc=description,
    unit=f' {unit}' if unit else 'it',
    mininterval=1.0,
    file=sys.stderr,
    dynamic_ncols=True,
    disable=not shown,
    leave=leave,
  )


class _Lines:
  """The part of tqdm's interface used here, as log lines: 'training: 120 of 1,000 steps, 0:02:10 left, loss 0.31'."""

  INTERVAL = 30  # seconds; shorter work prints nothing

  def __init__(self, total: int, description: str, unit: str, initial: int):
    self._total, self._what, self._unit = total, description, unit
    self.n = initial
    self._last = time.monotonic()
    self._first: tuple[int, float] | None = None  # (n, time) of the first update, which excludes compilation
    self._postfix = ''

  def __enter__(self) -> '_Lines':
    return self

  def __exit__(self, *exception):
    self.close()

  def update(self, n: int = 1) -> None:
    self.n += n
    now = time.monotonic()
    self._first = self._first or (self.n, now)
    if now - self._last < self.INTERVAL:
      return
    self._last = now
    done, todo = self.n - self._first[0], self._total - self.n
    left = f', {_clock((now - self._first[1]) * todo / done)} left' if done > 0 and todo > 0 else ''
    unit = f' {self._unit}' if self._unit else ''
    say(f'{self._what}: {self.n:,} of {self._total:,}{unit}{left}{self._postfix}')

  def set_postfix(self, values: dict[str, str], refresh: bool = False) -> None:
    self._postfix = ''.join(f', {name} {value}' for name, value in values.items())

  def write(self, line: str, file=None) -> None:
    print(line, file=file or sys.stdout, flush=True)

  def close(self) -> None:
    pass


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(int(seconds), 60)
  return f'{minutes // 60}:{minutes % 60:02d}:{seconds:02d}'
