"""The fuzz suite (tests/fuzz, `make fuzz`): some hundred cases, and whether it detects each kind of violation."""

import os
import random
import sys
import time

import pytest

from tests.fuzz import mutations, outcomes, runner, worker

SECONDS = float(os.environ.get('FUZZ_SECONDS', 120))
CASES = int(os.environ.get('FUZZ_CASES', 200))


@pytest.mark.slow
def test_no_input_causes_a_violation(tmp_path):
  """Runs a fixed number of cases; the time limit is generous because the machine may be busy."""
  tally = runner.run(os.environ.get('FUZZ_SEED', '0'), seconds=10 * SECONDS, cases=CASES, failures=tmp_path / 'fuzz')
  print(tally.table())
  assert not tally.failures, '\n'.join(tally.failures)
  assert tally.cases == CASES and set(tally.counts) == set(runner.WEIGHTS)


def test_a_case_depends_only_on_seed_subject_and_number():
  order = list(runner._order(runner.WEIGHTS, 2000))
  assert len(set(order)) == len(order) and {subject for subject, _ in order[:200]} == set(runner.WEIGHTS)
  data = bytes(range(256))
  assert mutations.damaged(data, random.Random('a/b/1')) == mutations.damaged(data, random.Random('a/b/1'))
  assert any(mutations.damaged(data, random.Random(str(i)))[0] != data for i in range(3))


class Subject:
  """A subject whose only case is the given function."""

  MOST_MEMORY = 2**28

  def __init__(self, case):
    self.case = lambda made, work, chance, note: case(work)


def open_canary(work):
  (work / mutations.CANARY).touch()


def run_a_program(work):
  sys.audit('os.system', b'true')


def use_too_much_memory(work):
  bytes(b'x' * 2**29)


def leave_unfinished_output(work):
  (work / '.model.writing-7').mkdir()
  outcomes.check_folder(work)


def not_finite(work):
  outcomes.check_numbers(scores=[1.0, float('nan')])


def forge_a_line(work):
  outcomes.check_printed('a\nerror: forged')


def raise_an_error(work):
  outcomes.attempt(lambda: {}['a'])


@pytest.mark.parametrize(
  'case, kind',
  [
    (open_canary, 'execution'),
    (run_a_program, 'execution'),
    (use_too_much_memory, 'memory'),
    (leave_unfinished_output, 'partial output'),
    (not_finite, 'not finite'),
    (forge_a_line, 'message'),
    (raise_an_error, 'traceback'),
    (lambda work: outcomes.ACCEPTED, ''),
  ],
)
def test_every_kind_of_violation_is_detected(tmp_path, monkeypatch, case, kind):
  monkeypatch.chdir(tmp_path)
  executed = []
  if case is run_a_program:
    executed = _Recorded()
  answer = worker.run_case(Subject(case), tmp_path, tmp_path / 'work', 'a/b/1', executed)
  assert answer['kind'] == kind, answer


class _Recorded(list):
  """The events that a worker's audit hook would have recorded."""

  def clear(self):
    self.append('os.system')


@pytest.mark.slow
@pytest.mark.parametrize('body, kind', [('os.abort()', 'crash'), ('while True: time.sleep(0.1)', 'hang')])
def test_a_crashed_or_hung_worker_is_one_failed_case(tmp_path, monkeypatch, body, kind):
  script = tmp_path / 'worker.py'
  script.write_text(
    'import json, os, sys, time\nfor line in sys.stdin:\n  if json.loads(line)["number"] == 1:\n    '
    f'{body}\n  print(json.dumps({{"outcome": "accepted", "kind": "", "detail": "", "note": ""}}), flush=True)\n'
  )
  monkeypatch.setattr(runner, '_WALL', 3)
  monkeypatch.setattr(runner, '_arguments', lambda *_: [sys.executable, str(script)])
  began = time.monotonic()
  tally = runner.run('0', cases=3, subjects=['images'], workers=1, failures=tmp_path / 'fuzz', say=lambda text: None)
  assert tally.counts['images'] == {'accepted': 2, kind.upper(): 1} and len(tally.failures) == 1
  assert 'python -m tests.fuzz --seed=0 --case=images/1' in tally.failures[0] and time.monotonic() - began < 60
