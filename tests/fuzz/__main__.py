"""Fuzzes all entry points: python -m tests.fuzz --seconds=120 --seed=0. Exits with status 1 if any case fails."""

import argparse
import sys
import time
from pathlib import Path

from tests.fuzz import runner


def main() -> int:
  parser = argparse.ArgumentParser(prog='python -m tests.fuzz', description=__doc__)
  parser.add_argument('--seconds', type=float, default=120, help='time limit (default: %(default)s)')
  parser.add_argument('--cases', type=int, default=10**9, help='maximum number of cases')
  parser.add_argument('--seed', default='0', help='seed of the inputs (default: %(default)s)')
  parser.add_argument('--subjects', metavar='A,B', help=f'some of {", ".join(runner.WEIGHTS)} (default: all)')
  parser.add_argument('--workers', type=int, default=2, help='number of processes (default: %(default)s)')
  parser.add_argument('--case', metavar='SUBJECT/NUMBER', help='run only this case')
  parser.add_argument(
    '--failures', type=Path, default=Path('build/fuzz'), help='folder for failing inputs (default: %(default)s)'
  )
  options = parser.parse_args()
  only = None
  if options.case:
    subject, number = options.case.split('/')
    only = subject, int(number)
  started = time.monotonic()
  tally = runner.run(
    options.seed,
    seconds=options.seconds,
    cases=options.cases,
    subjects=options.subjects.split(',') if options.subjects else None,
    workers=1 if only else options.workers,
    only=only,
    failures=options.failures,
    say=lambda text: print(text, flush=True),
  )
  print(tally.table())
  print(
    f'{tally.cases:,} cases in {time.monotonic() - started:.0f} s, {len(tally.failures)} failed; seed {options.seed}'
  )
  return 1 if tally.failures else 0


if __name__ == '__main__':
  sys.exit(main())
