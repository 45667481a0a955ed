"""What is printed, and how."""

import sys
from collections.abc import Iterable
from typing import Any


def say(text: str) -> None:
  """Prints a line on stderr at once: progress and remarks, beside the results on stdout."""
  print(text, file=sys.stderr, flush=True)


def printable(name: Any, most: int = 200) -> str:
  """A name from a file on one line, control and other unprintable characters escaped; cut beyond `most` characters."""
  text = str(name)
  text = text if len(text) <= most else text[: most - 3] + '...'
  return ''.join(
    character if character.isprintable() else character.encode('unicode_escape').decode() for character in text
  )


def listed(items: Iterable[Any], most: int = 5) -> str:
  """Items on one line, names escaped; beyond `most` of them only their number is given."""
  names = [printable(item) for item in items]
  more = len(names) - most
  return ', '.join(names[:most]) + (f' and {more} more' if more > 0 else '')
