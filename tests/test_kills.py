"""A run that is killed at any moment and restarted ends with the same bits as an undisturbed one."""

import pytest

from benchmarks import kills


@pytest.mark.multiprocess
def test_kills_during_steps_and_writes_change_nothing(tmp_path):
  result = kills.run(tmp_path / 'runs', kills=3, steps=24, seed=274)  # a seed that kills early in each process' life
  assert [kill['aim'] for kill in result['kills']] == ['write', 'steps', 'write']
  assert result['writes_hit'] >= 1, result
  assert result['same_weights'] and result['same_log'], result
