"""Results are bit-identical in any order; groups, intervals and files."""

import json

import numpy as np
import pytest

from ditsam_jax.evaluation.results import Results, Sample, Score


def scores(count=200):
  rng = np.random.default_rng(0)
  made = []
  for position in range(count):
    union = int(rng.integers(1, 10**6))
    overlaps = [[int(rng.integers(0, union)), union] for _ in range(2)]
    expression = ' '.join(['dog'] * int(rng.integers(1, 14)))
    sample = Sample(position, int(position // 7), position // 3, '', expression, int(rng.integers(1, union + 1)), 10**6)
    made.append(Score(sample, overlaps, None))
  return made


def test_order_and_a_round_trip_through_json_do_not_change_a_bit():
  made = scores()
  expected = Results.of(made, ['release', 'standard'])
  shuffled = [made[i] for i in np.random.default_rng(1).permutation(len(made))]
  other = Results.of(json.loads(json.dumps(shuffled)), ['release', 'standard'])
  assert json.dumps(other.to_json()) == json.dumps(expected.to_json())
  assert other.to_csv() == expected.to_csv() and other.table() == expected.table()


def test_counts_beyond_float_precision_are_exact():
  huge = 2**53
  sample = Sample(0, 1, 1, '', 'a', 1, 1)
  results = Results.of(
    [Score(sample._replace(position=i), [[1 + (i == 0) * huge, huge + 1]], None) for i in range(3)], ['release']
  )
  assert results.overlaps['release'].sum(0).tolist() == [huge + 3, 3 * huge + 3]


def test_the_groups_of_a_breakdown_cover_each_sample_once_in_the_listed_order():
  results = Results.of(scores(), ['release', 'standard'])
  for name, groups in results.breakdowns().items():
    assert (sum(rows.astype(int) for rows in groups.values()) == 1).all(), name
  figures = results.to_json()['breakdowns']['words']
  assert list(figures) == ['1-2', '3-5', '6-10', '11+']
  long = [score for score in scores() if len(score.sample.expression.split()) > 10]
  alone = Results.of(long, ['release', 'standard']).metrics('standard')
  assert {name: figures['11+']['standard'][name] for name in alone} == pytest.approx(alone)
  assert 'words: 11+' in results.breakdown_table() and 'position words: no' in results.breakdown_table()


def test_intervals_are_reported_next_to_their_metrics():
  results = Results.of(scores(), ['release', 'standard'])
  figures = json.loads(json.dumps(results.to_json()))['release']
  for name in ('mIoU', 'oIoU'):
    low, high = figures['intervals'][name]
    assert low < figures[name] < high
    assert f'[{low:.2f}, {high:.2f}]' in results.table()
