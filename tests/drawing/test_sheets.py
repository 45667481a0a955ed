"""Parts of contact sheets: a uniform random choice, and text that fits."""

import numpy as np
import pytest
from PIL import ImageFont

from ditsam_jax.drawing.sheets import Reservoir, fitted, wrap


def test_a_reservoir_keeps_a_uniform_sample():
  reservoirs = [Reservoir(10, seed) for seed in range(200)]
  for reservoir in reservoirs:
    for i in range(100):
      reservoir.offer(lambda i=i: i)
  kept = [reservoir.kept for reservoir in reservoirs]
  assert np.mean(kept) == pytest.approx(49.5, abs=3)  # 2000 of 0 to 99: standard error 0.65


def test_only_samples_that_are_kept_are_made():
  made = []
  reservoir = Reservoir(5)
  for i in range(1000):
    reservoir.offer(lambda i=i: made.append(i))
  assert reservoir.offered == 1000 and len(made) < 60  # 5 (1 + ln 200) = 31 expected


@pytest.mark.parametrize('size', [(3, 200), (200, 3), (10, 20), (1000, 700)])
def test_pictures_and_masks_are_scaled_to_the_long_side(size):
  pixels, mask = np.zeros((*size, 3), np.uint8), np.ones(size, bool)
  assert max(fitted(pixels, 64).shape[:2]) == 64 and fitted(pixels, 64).shape[:2] == fitted(mask, 64).shape
  assert fitted(mask, 64).dtype == bool and fitted(mask, 64).all()


def test_wrapped_text_fits_and_keeps_words_intact():
  font = ImageFont.load_default(size=20)
  text = 'the second small yellow triangle from the left that is not in the shade'
  lines = wrap(text, font, 300, 9)
  assert ' '.join(lines) == text and all(font.getlength(line) <= 300 for line in lines)
  cut = wrap(text, font, 300, 2)
  assert len(cut) == 2 and cut[1].endswith('…') and all(font.getlength(line) <= 300 for line in cut)
  assert font.getlength(wrap('unbreakable' * 9, font, 100, 2)[0]) <= 100
