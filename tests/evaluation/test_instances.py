"""Scores of instances, compared with results computed by hand."""

import numpy as np
import pytest

from ditsam_jax.evaluation.instances import Answer, instance_rates
from ditsam_jax.geometry.masks import encode_rle


def block(left, width=4):
  mask = np.zeros((8, 40), bool)
  mask[:, left : left + width] = True
  return encode_rle(mask)


def test_perfect_answers_score_one_hundred():
  answers = [
    Answer([block(0), block(10)], [block(10), block(0)], [0.9, 0.8]),
    Answer([block(20)], [block(20)], [0.7]),
    Answer([], [], []),
  ]
  rates = instance_rates(answers)
  assert set(rates) >= {
    'AP',
    'AP50',
    'AP75',
    'count',
    'count_0',
    'count_1',
    'count_2',
    'gIoU',
    'cIoU',
    'N-acc',
    'T-acc',
  }
  assert all(value == pytest.approx(100) for value in rates.values())


def test_a_mask_for_a_phrase_without_targets_is_wrong():
  # By rank: the wrong mask at precision 0/1, then the target at 1/2, so precision is 0.5 at all recalls.
  answers = [Answer([block(0)], [block(0)], [0.5]), Answer([], [block(10)], [0.9])]
  rates = instance_rates(answers)
  assert rates['AP'] == pytest.approx(50) and rates['AP50'] == pytest.approx(50)
  assert rates['count'] == 50 and rates['count_0'] == 0 and rates['count_1'] == 100
  assert rates['N-acc'] == 0 and rates['T-acc'] == 100
  assert rates['gIoU'] == 50 and rates['cIoU'] == 50  # 32 of 32 + 32 pixels


def test_a_missed_target_halves_the_recall_and_a_loose_mask_counts_only_at_low_thresholds():
  # IoU 4/6 = 0.67: correct at 0.5, 0.55, 0.6, 0.65 of ten thresholds; one of two targets is found.
  rates = instance_rates([Answer([block(0), block(20)], [block(0, 6)], [0.9])])
  half = 100 * 51 / 101  # of COCO's 101 recall points, those up to a half
  assert rates['AP50'] == pytest.approx(half) and rates['AP75'] == 0
  assert rates['AP'] == pytest.approx(0.4 * half)
  assert rates['count'] == 0 and rates['gIoU'] == pytest.approx(100 * 32 / 80)


def test_no_masks_at_all():
  rates = instance_rates([Answer([block(0)], [], []), Answer([], [], [])])
  assert rates['AP'] == 0 and rates['count'] == 50 and rates['N-acc'] == 100 and rates['T-acc'] == 0
