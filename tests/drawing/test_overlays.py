"""Overlays show which pixels belong to the object, on any picture."""

import numpy as np
import pytest

from ditsam_jax.drawing.overlays import PREDICTION_COLOUR, draw_prompt, overlay


def circle(height, width, radius):
  rows, columns = np.mgrid[:height, :width]
  return (rows - height // 2) ** 2 + (columns - width // 2) ** 2 < radius**2


def test_overlay_tints_and_outlines_the_object_and_dims_the_rest():
  image = np.full((100, 160, 3), (200, 120, 40), np.uint8)
  image.flags.writeable = False
  result = overlay(image, circle(100, 160, 30), tint=0.5)
  assert result.shape == image.shape and result.dtype == np.uint8
  tinted = [(a + b) / 2 for a, b in zip((200, 120, 40), PREDICTION_COLOUR)]
  assert result[50, 80] == pytest.approx(tinted, abs=1)
  # 0.6 of the colour plus 0.4 of a grey (half the mean of 120, plus 45), then darkened by 0.18
  dimmed = [(0.6 * channel + 0.4 * (0.5 * 120 + 45)) * 0.82 for channel in (200, 120, 40)]
  assert result[5, 5] == pytest.approx(dimmed, abs=1)
  assert (result == PREDICTION_COLOUR).all(-1).any()


def test_without_tint_only_the_outline_changes_the_object():
  image = np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)
  mask = circle(90, 90, 30)
  dimmed = overlay(image, np.zeros_like(mask))
  changed = (overlay(image, mask, tint=0) != np.where(mask[..., None], image, dimmed)).any(-1)
  distance = np.abs(np.hypot(*(np.mgrid[:90, :90] - 45)) - 30)
  assert changed[distance < 1].all() and not changed[distance > 5].any()


@pytest.mark.parametrize('fill', [False, True])
def test_overlay_of_empty_and_full_masks(fill):
  image = np.full((40, 40, 3), 100, np.uint8)
  middle = overlay(image, np.full((40, 40), fill), tint=0.5)[20, 20]
  # An empty mask dims everything; a full mask tints everything.
  assert (middle < 100).all() if not fill else middle[0] > 100


def test_every_part_and_hole_of_a_mask_is_outlined():
  mask = np.zeros((120, 120), bool)
  mask[20:70, 20:70], mask[35:55, 35:55], mask[90:110, 90:110] = True, False, True
  outline = (overlay(np.zeros((120, 120, 3), np.uint8), mask, tint=0) > 40).any(-1)  # dimming adds 15
  assert outline[20, 45] and outline[45, 35] and outline[90, 100]
  assert not outline[45, 45] and not outline[80, 80]


def test_points_without_labels_are_on_the_object():
  drawn = [np.zeros((40, 40, 3), np.uint8) for _ in range(3)]
  for pixels, labels in zip(drawn, (None, np.ones(1), np.zeros(1))):
    draw_prompt(pixels, points=np.array([[20.0, 20.0]]), labels=labels)
  assert np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[2])
