"""benchmarks/claim.py compares runs of one budget only, from any folder, at learning rates chosen by one rule."""

import argparse
import json

import pytest

from benchmarks import claim


def test_runs_of_another_budget_are_refused(tmp_path):
  job = next(claim.planned(tmp_path, claim.PAIRS))
  options = argparse.Namespace(output=tmp_path, steps=1000)
  assert not claim.is_done(job, options)
  (tmp_path / job.name).mkdir()
  (tmp_path / job.name / 'pairs.json').write_text(json.dumps({'steps': 250}))
  assert claim.is_done(job, options)
  options.steps = 100
  with pytest.raises(SystemExit, match='is of 250 updates, not 25; choose another --output'):
    claim.is_done(job, options)


def test_runs_which_start_elsewhere_write_where_results_are_read(tmp_path, monkeypatch):
  written = []
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(claim.sys, 'argv', ['claim.py', '--output=here', '--jobs=1'])
  monkeypatch.setattr(claim, 'run', lambda job, options: written.append(options.output))
  assert claim.main() == 0
  assert written == [tmp_path / 'here'] and (tmp_path / 'here' / 'claim.md').is_file()


def test_close_rates_are_compared_after_the_whole_budget(tmp_path):
  """Three rates for a quarter of the budget, two for all of it with the first seed, one with the other seeds."""
  pair = claim.Pair('ldit', True)
  after_a_quarter, after_all = {1.5e-3: 33.8, 3e-3: 33.5, 6e-3: 29.9}, {1.5e-3: 49.1, 3e-3: 52.0}
  started = []
  for job in claim.planned(tmp_path, [pair]):
    started.append((job.stage, job.seed, job.rate))
    folder = tmp_path / job.name
    folder.mkdir()
    score = (after_a_quarter if job.stage == 'tune' else after_all)[job.rate]
    log = [{'step': 250, 'val/mIoU': 99.0}, {'step': 990}, {'step': 1000, 'val/mIoU': score}]
    (folder / 'train_log.jsonl').write_text(''.join(f'{json.dumps(line)}\n' for line in log))
    (folder / 'metrics.json').write_text(json.dumps({'release': {'mIoU': score}}))
    (folder / 'pairs.json').write_text('{}')
  assert started == [
    *(('tune', 100, rate) for rate in (1.5e-3, 3e-3, 6e-3)),
    *(('main', 0, 1.5e-3), ('main', 0, 3e-3), ('main', 1, 3e-3), ('main', 2, 3e-3)),
  ]


def test_a_part_runs_alone_and_unfinished_jobs_are_not_reported(tmp_path, monkeypatch):
  started = []

  def interrupted(job, options):  # trained, but its minimal pairs are missing
    started.append(job.name)
    (tmp_path / job.name).mkdir()
    (tmp_path / job.name / 'metrics.json').write_text(json.dumps({'release': {'mIoU': 50.0}}))
    (tmp_path / job.name / 'train_log.jsonl').write_text(json.dumps({'step': 1000, 'val/mIoU': 50.0}))

  monkeypatch.setattr(claim.sys, 'argv', ['claim.py', f'--output={tmp_path}', '--only=trained', '--jobs=2'])
  monkeypatch.setattr(claim, 'run', interrupted)
  assert claim.main() == 0
  assert started == ['tune-ldit-trained-seed100-0.0015', 'tune-ldit-trained-seed100-0.003']
  for rate in claim.RATES:  # also of the runs that decide about the rate
    interrupted(claim.Job('main', claim.PAIRS[1], 0, rate), None)
  interrupted(claim.Job('tune', claim.PAIRS[1], 100, 6e-3), None)
  claim.report(argparse.Namespace(output=tmp_path, steps=1000))
  assert (tmp_path / 'claim.md').read_text().startswith('0 runs')
