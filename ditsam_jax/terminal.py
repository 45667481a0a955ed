"""What is printed, and how."""

import sys
from collections.abc import Iterable

_LONGEST = 200  # characters of a name; of longer ones the middle is left out
_HARMLESS = '\u200c\u200d'  # joiners: not "printable" for Python, but part of Persian words and of emoji


def say(text: str) -> None:
  """Prints a line on stderr at once: progress and remarks, beside the results on stdout."""
  print(text, file=sys.stderr, flush=True)


def printable(name: object, longest: int = _LONGEST) -> str:
  """A name from a file, a path or an argument as it may be printed.

  Line breaks, control characters, what turns the direction of writing and bytes that are no text are escaped, so a
  name cannot forge a line of output; of a long one the middle is left out.
  """
  text = str(name)
  if len(text) > longest:
    half = longest // 2
    text = f'{text[:half]}...{text[-half:]}'
  if text.isprintable():
    return text
  return ''.join(c if c.isprintable() or c in _HARMLESS else c.encode('unicode_escape').decode() for c in text)


def listed(items: Iterable[object], most: int = 5) -> str:
  """'a, b, c and 7 more': the first items as `printable`, and how many are left out."""
  items = list(items)
  shown = ', '.join(printable(item) for item in items[:most])
  return f'{shown} and {len(items) - most:,} more' if len(items) > most else shown
