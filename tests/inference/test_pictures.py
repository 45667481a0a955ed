"""Overlays show the prompt and the result on any picture."""

import numpy as np
import pytest

from ditsam_jax.drawing import captions
from ditsam_jax.inference.pictures import draw
from ditsam_jax.inference.prompts import Prompt

SIZES = [(32, 32), (33, 200), (200, 33), (64, 48), (480, 640), (3000, 40), (1500, 2000)]


def picture(size, value=128):
  return np.full((*size, 3), value, np.uint8)


def disc(size):
  rows, columns = np.ogrid[: size[0], : size[1]]
  return ((rows - size[0] / 2) ** 2 + (columns - size[1] / 2) ** 2 < (min(size) / 4) ** 2)[None]


def luminance(pixels):
  """Relative luminance (WCAG 2) of uint8 [..., 3]."""
  linear = np.where(pixels <= 10, pixels / 255 / 12.92, ((pixels / 255 + 0.055) / 1.055) ** 2.4)
  return linear @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize('size', [*SIZES, (8000, 1500)])
@pytest.mark.parametrize('value', [0, 255])
def test_captions_are_legible_at_any_size_and_brightness(size, value):
  drawn = draw(picture(size, value), np.zeros((1, *size), bool), Prompt('the red circle'), np.array([0.5]))
  plain = draw(picture(size, value), np.zeros((1, *size), bool), Prompt('x'), np.array([0.5]))
  assert drawn.shape == (*size, 3) and drawn.dtype == np.uint8
  ground = np.array(captions._BACKGROUND)
  rows = np.flatnonzero((drawn == ground).all(-1).mean(1) > 0.2)
  assert 8 <= len(rows) <= max(16, 0.34 * size[0]), 'no caption, or one that hides too much'
  strip = drawn[rows[0] : rows[-1] + 1]
  letters, darkest = luminance(strip).max(), luminance(strip).min()
  assert (letters + 0.05) / (darkest + 0.05) > 7  # WCAG's AAA
  assert (drawn != plain).any() or size[1] < 60


def test_the_caption_shows_text_and_score():
  size = (100, 300)
  base = draw(picture(size), disc(size), Prompt('the red circle'), np.array([0.87]))
  for prompt, score in (('the red square', 0.87), ('the red circle', 0.17)):
    changed = (draw(picture(size), disc(size), Prompt(prompt), np.array([score])) != base).any(-1)
    rows = np.flatnonzero(changed.any(1))
    assert len(rows) and rows.min() > 80, 'in the caption, and nowhere else'
  # The score stays at the right.
  assert changed[:, :200].sum() == 0


def test_the_caption_reports_an_empty_mask(monkeypatch):
  captions = []
  monkeypatch.setattr('ditsam_jax.inference.pictures.caption', lambda *arguments: captions.append(arguments))
  size = (64, 64)
  draw(picture(size), np.zeros((1, *size), bool), Prompt('x'), np.array([0.5]))
  draw(picture(size), disc(size), Prompt('x'), np.array([0.5]))
  assert [figures[0] for _, _, figures in captions] == ['nothing found, IoU 0.50', 'IoU 0.50']


def test_the_best_of_several_masks_is_drawn():
  masks = np.concatenate([disc((80, 80)), np.zeros((1, 80, 80), bool)])
  arguments = picture((80, 80)), masks, Prompt('x')
  one, other = (draw(*arguments, np.array(scores)) for scores in ([0.9, 0.1], [0.1, 0.9]))
  assert np.array_equal(one, draw(picture((80, 80)), masks[:1], Prompt('x'), np.array([0.9])))
  assert np.array_equal(other, draw(picture((80, 80)), masks[1:], Prompt('x'), np.array([0.9])))


@pytest.mark.parametrize('size', [(32, 32), (480, 640), (3000, 2000)])
def test_point_labels_differ_in_shape_and_boxes_are_drawn(size):
  height, width = size
  nothing = np.zeros((1, *size), bool)
  at = np.array([[width / 2, height / 3]])
  plain = draw(picture(size), nothing, Prompt('x'), np.array([0.5]))
  on, off = (
    draw(picture(size), nothing, Prompt('x', points=at, labels=np.array([label])), np.array([0.5])) for label in (1, 0)
  )
  shapes = [(pixels != plain).any(-1) for pixels in (on, off)]
  filled = [shape.sum() / np.ptp(np.flatnonzero(shape.any(0))).clip(1) ** 2 for shape in shapes]
  assert filled[1] > 1.1 * filled[0] > 0.5, 'a disc, and a square'
  grey = [pixels.astype(int).mean(-1) for pixels in (on, off)]
  assert np.abs(grey[0] - grey[1]).max() > 60, 'distinguishable without colour'
  box = np.array([width * 0.25, height * 0.25, width * 0.75, height * 0.6])
  boxed = draw(picture(size), nothing, Prompt('x', box=box), np.array([0.5]))
  changed = (boxed != plain).any(-1)
  assert (
    changed[round(box[1]), width // 2]
    and changed[height // 2, round(box[0])]
    and not changed[height * 2 // 5, width // 2]
  )


def test_the_caption_avoids_the_mask_and_the_points():
  low = np.zeros((1, 100, 100), bool)
  low[:, 85:, 20:80] = True
  for prompt, mask in (
    (Prompt('x'), low),
    (Prompt(points=np.array([[50, 95]]), labels=np.array([1])), np.zeros((1, 100, 100), bool)),
  ):
    drawn = draw(picture((100, 100)), mask, prompt, np.array([0.5]))
    ground = (drawn == captions._BACKGROUND).all(-1)
    assert ground[:12].any() and not ground[50:].any()


def test_images_too_small_for_a_caption():
  assert draw(picture((5, 5)), disc((5, 5)), Prompt('x'), np.array([0.5])).shape == (5, 5, 3)
