"""A worker process: reads {'subject', 'number'} as JSON lines and answers each with a line."""

import contextlib
import importlib
import json
import os
import random
import shutil
import sys
import time
import traceback
from pathlib import Path

from tests.fuzz.mutations import CANARY
from tests.fuzz.outcomes import Violation, check_printed

_STARTS_PROGRAMS = ('os.system', 'os.exec', 'os.spawn', 'pty.spawn')


def main() -> None:
  """Runs the loop. Arguments: seed of the run, folder of seed files (shared by workers), folder of its own cases."""
  seed, seeds, work = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
  answers = os.fdopen(os.dup(1), 'w')
  printed = work.with_suffix('.printed')
  sink = os.open(printed, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
  os.dup2(sink, 1)
  os.dup2(sink, 2)
  executed: list[str] = []
  sys.addaudithook(lambda event, arguments: executed.append(event) if event in _STARTS_PROGRAMS else None)
  from ditsam_jax import command_line

  command_line._silence_python()
  for line in sys.stdin:
    asked = json.loads(line)
    subject = importlib.import_module(f'tests.fuzz.{asked["subject"]}')
    made = seeds / asked['subject']
    if not made.exists():  # made by the first case of a subject
      _prepare(subject, made)
    answer = run_case(subject, made, work, f'{seed}/{asked["subject"]}/{asked["number"]}', executed)
    text = printed.read_bytes()[-20_000:].decode(errors='replace')
    os.ftruncate(sink, 0)
    os.lseek(sink, 0, os.SEEK_SET)
    if not answer['kind']:
      try:
        check_printed(text)
      except Violation as violation:
        answer |= {'kind': violation.kind, 'detail': str(violation)}
    answers.write(json.dumps(answer) + '\n')
    answers.flush()


def _prepare(subject, made: Path) -> None:
  unfinished = made.with_suffix(f'.{os.getpid()}')
  shutil.rmtree(unfinished, ignore_errors=True)
  unfinished.mkdir(parents=True)
  subject.prepare(unfinished)
  with contextlib.suppress(OSError):  # another worker was faster
    os.rename(unfinished, made)
  shutil.rmtree(unfinished, ignore_errors=True)


def run_case(subject, made: Path, work: Path, name: str, executed: list[str]) -> dict:
  """Runs one case in an empty folder `work`, which is kept until the next case; returns its answer."""
  shutil.rmtree(work, ignore_errors=True)
  work.mkdir(parents=True)
  os.chdir(work)
  executed.clear()
  answer = {'outcome': '', 'kind': '', 'detail': '', 'note': ''}
  before, started = _reset_peak(), time.process_time()
  notes: list[str] = []
  try:
    answer['outcome'] = subject.case(made, work, random.Random(name), notes.append)
    if executed or list(work.rglob(CANARY)):
      raise Violation('execution', f'{executed or CANARY}')
  except Violation as violation:
    answer |= {'kind': violation.kind, 'detail': str(violation)}
  except BaseException as error:
    answer |= {'kind': 'traceback', 'detail': ''.join(traceback.format_exception(error))[-3000:]}
  grown = _peak() - before
  answer |= {'note': '; '.join(notes)[:500], 'megabytes': grown >> 20, 'seconds': time.process_time() - started}
  if not answer['kind'] and grown > (limit := getattr(subject, 'MOST_MEMORY', 2**30)):
    answer |= {'kind': 'memory', 'detail': f'{grown >> 20} MiB, expected at most {limit >> 20}'}
  os.chdir('/')
  return answer


def _reset_peak() -> int:
  """Resets the peak memory to the current one, if Linux allows it; returns it."""
  with contextlib.suppress(OSError):
    Path('/proc/self/clear_refs').write_text('5')
  return _peak()


def _peak() -> int:
  for line in Path('/proc/self/status').read_text().splitlines():
    if line.startswith('VmHWM'):
      return int(line.split()[1]) * 1024
  return 0


if __name__ == '__main__':
  main()
