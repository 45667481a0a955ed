"""Overlays show the prompt and the result on any picture."""

import numpy as np
import pytest
from PIL import ImageFont

from ditsam_jax.inference import captions
from ditsam_jax.inference.captions import caption
from ditsam_jax.inference.pictures import PREDICTION_COLOUR, draw, overlay
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


def test_characters_missing_from_all_fonts_are_escaped(monkeypatch):
  monkeypatch.setattr(captions, '_FONTS', ())  # only Pillow's built-in font
  font, text = captions._choose_font('café 中 \u202e…', 20)
  assert text == 'cafe \\u4e2d \\u202e…' and isinstance(font, ImageFont.FreeTypeFont)


@pytest.mark.parametrize(
  'text', ['кружка слева', 'الدائرة الحمراء', 'लाल वृत्त', '🙂👩‍🔬', 'a\u0301\u0302\u0303', '\ufffd\ue000', 'x' * 5000]
)
@pytest.mark.parametrize('size', [(32, 32), (300, 400)])
def test_any_script_is_drawn(text, size):
  strip = caption(size, text, ('IoU 0.50', '0.50'))
  assert strip.shape[1] == size[1] and 8 <= len(strip) <= 0.4 * size[0] + 4


def test_images_too_small_for_a_caption():
  assert caption((5, 5), 'a', ('IoU 0.50', '0.50')) is None
  assert draw(picture((5, 5)), disc((5, 5)), Prompt('x'), np.array([0.5])).shape == (5, 5, 3)


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
