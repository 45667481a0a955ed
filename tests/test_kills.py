"""Killed at any moment and started again, a run ends with the same bits as one that was left alone."""

import pytest

from benchmarks import kills


@pytest.mark.multiprocess
def test_three_kills_two_of_them_in_a_write_change_nothing(tmp_path):
  result = kills.run(tmp_path / 'runs', kills=3, steps=24, seed=274)  # a seed that kills early in each process' life
  assert [kill['aim'] for kill in result['kills']] == ['write', 'steps', 'write']
  assert result['writes_hit'] >= 1, result
  assert result['same_weights'] and result['same_log'], result
