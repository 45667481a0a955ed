"""Distributes cases to worker processes; a crashed or hung worker is one failed case, and the run continues."""

import collections
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Relative numbers of cases of each subject: more for quick ones.
WEIGHTS = {
  'images': 32,
  'arrays': 8,
  'sentences': 6,
  'prompts': 8,
  'jobs': 6,
  'serving': 12,
  'models': 12,
  'pytorch': 8,
  'refcoco': 12,
  'own': 16,
  'configs': 24,
  'checkpoints': 6,
  'arguments': 8,
  'commands': 1,
}
_CPU, _WALL = 90, 240  # limits of one case, seconds
_MEMORY = 6 * 2**30  # limit of a worker, bytes; it is killed before the machine runs out


@dataclass
class Tally:
  """Outcomes of the cases so far."""

  counts: dict[str, collections.Counter] = field(default_factory=lambda: collections.defaultdict(collections.Counter))
  seconds: collections.Counter = field(default_factory=collections.Counter)
  megabytes: collections.Counter = field(default_factory=collections.Counter)
  failures: list[str] = field(default_factory=list)

  @property
  def cases(self) -> int:
    return sum(sum(counts.values()) for counts in self.counts.values())

  def table(self) -> str:
    """Returns a table of outcomes by subject."""
    outcomes = sorted({outcome for counts in self.counts.values() for outcome in counts})
    rows = [['subject', 'cases', *outcomes, 'CPU s', 'MiB']]
    for subject, counts in sorted(self.counts.items()):
      numbers = [sum(counts.values()), *(counts[outcome] for outcome in outcomes)]
      rows.append([subject, *map(str, numbers), f'{self.seconds[subject]:.0f}', str(self.megabytes[subject])])
    widths = [max(map(len, column)) for column in zip(*rows)]
    return '\n'.join('  '.join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows)


class _Worker:
  """One worker process."""

  def __init__(self, seed: str, seeds: Path, work: Path):
    self._arguments = _arguments(seed, seeds, work)
    self.work = work
    self._process: subprocess.Popen | None = None

  def run(self, subject: str, number: int) -> dict:
    """Runs one case; the answer's 'kind' is 'crash', 'hang' or 'memory' if the process died or was killed."""
    if self._process is None:
      environment = {
        **os.environ,
        'JAX_PLATFORMS': 'cpu',
        'PYTHONFAULTHANDLER': '1',
        'TQDM_DISABLE': '1',
        'OMP_NUM_THREADS': '1',
        'XLA_FLAGS': '--xla_backend_optimization_level=0 --xla_cpu_multi_thread_eigen=false',
      }
      self._process = subprocess.Popen(
        self._arguments, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
      )
    process = self._process
    with contextlib.suppress(BrokenPipeError):
      process.stdin.write(json.dumps({'subject': subject, 'number': number}) + '\n')
      process.stdin.flush()
    started, cpu = time.monotonic(), _cpu_seconds(process.pid)
    while not select.select([process.stdout], [], [], 0.5)[0]:
      used = _cpu_seconds(process.pid) - cpu
      memory = _memory(process.pid)
      if used > _CPU or time.monotonic() - started > _WALL or memory > _MEMORY:
        kind = 'memory' if memory > _MEMORY else 'hang'
        with contextlib.suppress(OSError):
          process.send_signal(6)  # faulthandler prints the stack
        return self._gone(kind, f'{used:.0f} s of CPU, {memory >> 20} MiB')
    line = process.stdout.readline()
    return json.loads(line) if line else self._gone('crash', '')

  def _gone(self, kind: str, detail: str) -> dict:
    process, self._process = self._process, None
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.wait(10)
    process.kill()
    status = process.wait()
    printed = self.work.with_suffix('.printed')
    tail = printed.read_text(errors='replace')[-3000:] if printed.exists() else ''
    return {'outcome': '', 'kind': kind, 'detail': f'{detail} status {status}\n{tail}', 'note': ''}

  def close(self) -> None:
    if self._process:
      self._process.stdin.close()
      self._process.kill()
      self._process.wait()


def run(
  seed: str, *, seconds: float = 1e9, cases: int = 10**9, subjects: list[str] | None = None, workers: int = 2,
  only: tuple[str, int] | None = None, failures: Path = Path('fuzz-failures'), say=print,
) -> Tally:  # fmt: skip
  """Runs cases until either limit, `seconds` or `cases`, is reached.

  Args:
    seed: seed of the run; a case depends only on it, its subject and its number.
    subjects: some of WEIGHTS; all by default.
    only: a single case to run, (subject, number).
    failures: folder for the inputs of failed cases.
  """
  chosen = {name: WEIGHTS[name] for name in subjects or WEIGHTS}
  order = iter([only]) if only else _order(chosen, cases)
  tally, lock, ends = Tally(), threading.Lock(), time.monotonic() + seconds
  folder = Path(tempfile.mkdtemp(prefix='ditsam_jax-fuzz-'))

  def work(index: int) -> None:
    worker = _Worker(seed, folder / 'seeds', folder / f'worker{index}')
    try:
      while time.monotonic() < ends:
        with lock:
          subject, number = next(order, (None, 0))
        if subject is None:
          return
        answer = worker.run(subject, number)
        with lock:
          _note(tally, answer, seed, subject, number, worker.work, failures, say)
    finally:
      worker.close()

  try:
    (folder / 'seeds').mkdir()
    threads = [threading.Thread(target=work, args=(index,)) for index in range(workers)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
  finally:
    shutil.rmtree(folder, ignore_errors=True)
  return tally


def _arguments(seed: str, seeds: Path, work: Path) -> list[str]:
  return [sys.executable, '-m', 'tests.fuzz.worker', seed, str(seeds), str(work)]


def _order(weights: dict[str, int], cases: int):
  """Yields (subject, number) of each case, with subjects interleaved in proportion to their weights."""
  numbers = collections.Counter()
  for done in range(cases):
    subject = min(weights, key=lambda name: (numbers[name] + 0.5) / weights[name])
    yield subject, numbers[subject]
    numbers[subject] += 1


def _note(tally: Tally, answer: dict, seed: str, subject: str, number: int, work: Path, failures: Path, say) -> None:
  tally.counts[subject][answer['kind'].upper() or answer['outcome']] += 1
  tally.seconds[subject] += answer.get('seconds', 0)
  tally.megabytes[subject] = max(tally.megabytes[subject], answer.get('megabytes', 0))
  if not answer['kind']:
    return
  kept = failures / f'{seed}-{subject}-{number}'
  shutil.rmtree(kept, ignore_errors=True)
  with contextlib.suppress(OSError, shutil.Error):
    failures.mkdir(parents=True, exist_ok=True)
    shutil.copytree(work, kept, symlinks=True, copy_function=_copy, dirs_exist_ok=True)
    (kept / 'what.txt').write_text(json.dumps(answer, indent=1))
  line = (
    f'FAILED {subject} {number} ({answer["note"]})\n  {answer["detail"].strip()}\n'
    f'  input: {kept}\n  again: python -m tests.fuzz --seed={seed} --case={subject}/{number}'
  )
  tally.failures.append(line)
  say(line)


def _copy(source: str, target: str) -> None:
  if os.path.isfile(source):
    shutil.copyfile(source, target)


def _cpu_seconds(pid: int) -> float:
  try:
    fields = Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')
  except (OSError, IndexError):
    return 0.0


def _memory(pid: int) -> int:
  try:
    return int(Path(f'/proc/{pid}/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')
  except (OSError, IndexError):
    return 0
