"""What is printed, and how."""

import sys


def say(text: str) -> None:
  """Prints a line on stderr at once: progress and remarks, beside the results on stdout."""
  print(text, file=sys.stderr, flush=True)
