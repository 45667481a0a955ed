"""benchmarks/claim.py compares runs of one budget only, from any folder."""

import argparse
import json

import pytest

from benchmarks import claim


def test_runs_of_another_budget_are_refused(tmp_path):
  job = claim.all_jobs()[0]
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
