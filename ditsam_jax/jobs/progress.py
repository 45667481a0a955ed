"""Progress and summary of a job."""

import sys
import time

from ditsam_jax import terminal
from ditsam_jax.terminal import listed, printable

_MOST = 20  # failures to list
_WARNINGS = 5  # warnings about words to print immediately


class Progress:
  """Counts results and failures, and shows progress while the context is open."""

  def __init__(self, total: int, description: str) -> None:
    self.done = self.failed = 0
    self._started = time.monotonic()
    self._shown = terminal.progress(total, description, 'results', shown=total > 1)

  def __enter__(self) -> 'Progress':
    return self

  def __exit__(self, *exception) -> None:
    self._shown.close()

  def step(self, failed: bool = False) -> None:
    """Counts one more result or failure."""
    self.done += not failed
    self.failed += failed
    if failed:
      self._shown.set_postfix({'failed': f'{self.failed:,}'}, refresh=False)
    self._shown.update()

  def say(self, line: str) -> None:
    """Prints a line to stderr without disturbing the progress bar."""
    self._shown.write(line, file=sys.stderr)

  def show(self, line: str) -> None:
    """Prints a line to stdout without disturbing the progress bar."""
    self._shown.write(line, file=sys.stdout)

  def summary(self) -> str:
    """Formats a summary: '200 results in 12 s (16.7 a second)'."""
    seconds = time.monotonic() - self._started
    failed = f', {self.failed:,} failed' if self.failed else ''
    if not self.done:
      return f'no results{failed}'
    results = f'{self.done:,} result{"" if self.done == 1 else "s"}'
    return f'{results} in {_duration(seconds)} ({_rate(self.done, seconds)}){failed}'


class Remarks:
  """Warnings about results: the first ones are printed immediately, the rest are counted at the end."""

  def __init__(self, progress: Progress) -> None:
    self._progress = progress
    self._empty = self._words_unknown = self._words_cut = self._counted = 0
    self._warned: set[object] = set()
    self._failures: list[str] = []

  def result(self, text: str | None, unknown: tuple[str, ...], cut: str, is_empty: bool) -> None:
    """Counts one result and warns about its words."""
    self._empty += is_empty
    self._words_unknown += bool(unknown)
    self._words_cut += bool(cut)
    if unknown:
      self._once(unknown, f'warning: words the model does not know: {listed(unknown)}')
    if cut:
      shown = printable(text or '', 100)
      self._once(text, f"warning: '{shown}' exceeds the model's token limit; cut: '{printable(cut, 100)}'")

  def failure(self, message: str) -> None:
    """Records a failed request; the first ones are listed at the end."""
    if message in self._failures[-1:]:  # the same image with another prompt
      self._counted += 1
    elif len(self._failures) < _MOST:
      self._failures.append(message)
      self._counted += 1

  def at_the_end(self) -> list[str]:
    """Returns the final lines: counts, then failures."""
    done = self._progress.done
    counts = [
      f'{count:,} {what}'
      for count, what in (
        (self._empty, 'found nothing'),
        (self._words_unknown, 'with words that the model does not know'),
        (self._words_cut, 'with words cut'),
      )
      if count and done > 1
    ]
    lines = [f'{self._progress.summary()}{": " if counts else ""}{", ".join(counts)}'] if done != 1 or counts else []
    lines += [f'error: {failure}' for failure in self._failures]
    if (more := self._progress.failed - self._counted) > 0:
      lines.append(f'error: and {more:,} more failed; rerun the command to retry them')
    return lines

  def _once(self, what: object, line: str) -> None:
    if what not in self._warned and len(self._warned) < _WARNINGS:
      self._warned.add(what)
      self._progress.say(line)


def _rate(count: int, seconds: float) -> str:
  rate = count / max(seconds, 1e-9)
  return f'{rate:,.{0 if rate >= 100 else 1 if rate >= 1 else 2}f} a second'


def _duration(seconds: float) -> str:
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f'{hours:,} h {minutes} min'
  return f'{minutes} min {rest} s' if minutes else f'{rest} s'
