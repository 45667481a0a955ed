"""What is printed, and how."""

import sys
from collections.abc import Iterable


def say(text: str) -> None:
  """Prints a line on stderr at once: progress and remarks, beside the results on stdout."""
  print(text, file=sys.stderr, flush=True)


def printable(name: object, most: int = 200) -> str:
  """`name` as it may be printed: control characters, surrogates and line breaks escaped, the middle of long ones cut."""
  text = str(name)
  if len(text) > most:
    text = f'{text[: most // 2]}...{text[-most // 4 :]}'
  return ''.join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def listed(items: Iterable[object], most: int = 5) -> str:
  """'a, b, c and 7 more', each printable."""
  items = list(items)
  more = f' and {len(items) - most:,} more' if len(items) > most else ''
  return ', '.join(map(printable, items[:most])) + more
