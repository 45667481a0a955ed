"""Captions hold any text in any script, or are left out where they do not fit."""

import pytest
from PIL import ImageFont

from ditsam_jax.drawing import captions
from ditsam_jax.drawing.captions import caption


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


def test_pictures_too_small_for_a_caption_get_none():
  assert caption((5, 5), 'a', ('IoU 0.50', '0.50')) is None
