"""Masks of own data, compared with hand-made masks, pycocotools and OpenCV."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from ditsam_jax.data.own.entries import mask_of
from ditsam_jax.data.own.masks import MaskFile, Segmentation, decoded
from ditsam_jax.data.preparation import problems
from ditsam_jax.data.preparation.masks import MaskError
from tests.data.own.pictures import compressed, polygon, uncompressed

MASK = np.zeros((30, 40), bool)
MASK[5:20, 7:33] = True
DISC = cv2.circle(np.zeros((60, 80), np.uint8), (40, 30), 21, 1, -1).astype(bool)


def png(pixels, mode=None, **options) -> bytes:
  file = io.BytesIO()
  image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
  (image.convert(mode) if mode else image).save(file, 'png', **options)
  return file.getvalue()


def with_palette(mask):
  image = Image.fromarray(mask.astype(np.uint8))
  image = image.convert('P')
  image.putpalette([0, 0, 0, 255, 0, 0] + [0] * 750)
  return image


def on_transparency(mask):
  return np.dstack([np.full((*mask.shape, 3), 255, np.uint8), mask.astype(np.uint8) * 255])


@pytest.mark.parametrize(
  'data',
  [
    png(MASK.astype(np.uint8) * 255),
    png(MASK.astype(np.uint8)),  # 0 and 1
    png(MASK.astype(np.uint8) * 7),
    png(MASK.astype(np.uint16) * 65535),
    png(MASK),  # one bit per pixel
    png(MASK.astype(np.uint8) * 255, 'RGB'),
    png(MASK.astype(np.uint8) * 255, 'LA'),
    png(with_palette(MASK)),
    png(Image.fromarray(MASK.astype(np.uint8) * 255).convert('RGB').quantize(2)),  # white first
    png(on_transparency(MASK)),
  ],
  ids=['255', '1', '7', '16 bit', '1 bit', 'RGB', 'LA', 'palette', 'quantised', 'transparent'],
)
def test_every_kind_of_png_is_decoded(data):
  np.testing.assert_array_equal(decoded(data, *MASK.shape), MASK)


def test_soft_edges_are_cut_at_half():
  soft = cv2.GaussianBlur(MASK.astype(np.uint8) * 255, (3, 3), 0)
  np.testing.assert_array_equal(decoded(png(soft), *MASK.shape), soft > 127)


@pytest.mark.parametrize('value, expected', [(0, False), (255, True), (1, True)])
def test_an_all_black_png_is_empty_and_an_all_white_one_is_full(value, expected):
  assert (decoded(png(np.full((9, 8), value, np.uint8)), 9, 8) == expected).all()


@pytest.mark.parametrize(
  'data, kind, message',
  [
    (png(np.arange(1200).reshape(30, 40).astype(np.uint8) % 4), problems.MALFORMED_MASK, 'values 0, 1, 2, 3'),
    (png(np.dstack([MASK * 200, MASK * 9, MASK * 0]).astype(np.uint8)), problems.MALFORMED_MASK, 'coloured'),
    (png(MASK.T.astype(np.uint8)), problems.MASK_SIZE, '30 x 40, the image is 40 x 30'),
    (b'', problems.MASK_FILE, 'not a PNG'),
    (cv2.imencode('.jpg', MASK.astype(np.uint8))[1].tobytes(), problems.MASK_FILE, 'not a PNG'),
    (png(MASK.astype(np.uint8))[:-30], problems.MASK_FILE, '.'),
  ],
)
def test_invalid_mask_files_are_refused_with_the_reason(data, kind, message):
  with pytest.raises(MaskError, match=message) as error:
    decoded(data, *MASK.shape)
  assert error.value.kind == kind


def test_numbered_objects_in_a_palette_are_refused():
  labels = Image.fromarray((np.arange(1200).reshape(30, 40) % 3).astype(np.uint8) * 100).convert('P')
  with pytest.raises(MaskError, match='a file per object'):
    decoded(png(labels), *MASK.shape)


def test_too_little_memory_is_not_taken_for_damage(monkeypatch):
  def fail(*arguments, **options):
    raise MemoryError

  data = png(MASK)
  monkeypatch.setattr('PIL.Image.open', fail)
  with pytest.raises(MemoryError):
    decoded(data, *MASK.shape)


@pytest.mark.parametrize('odd', ['missing', 'folder', 'device', 'text'])
def test_unreadable_mask_files_are_problems(tmp_path, odd):
  file = tmp_path / 'mask.png'
  if odd == 'folder':
    file.mkdir()
  elif odd == 'device':
    file.symlink_to('/dev/zero')
  elif odd == 'text':
    file.write_text('mask')
  with pytest.raises(MaskError) as error:
    MaskFile(str(file), 'mask.png').draw(30, 40)
  assert error.value.kind == problems.MASK_FILE


@pytest.mark.verifies('Masks of own data: polygons and run lengths', against='pycocotools', within='equal')
@pytest.mark.parametrize('spell', [compressed, uncompressed])
def test_run_lengths(spell):
  for mask in (MASK, DISC, np.zeros((5, 6), bool), np.ones((5, 6), bool)):
    np.testing.assert_array_equal(Segmentation(mask_of(spell(mask))).draw(*mask.shape), mask)
    assert coco_mask.area(compressed(mask)) == mask.sum()


@pytest.mark.verifies('Masks of own data: polygons and run lengths', against='pycocotools', within='equal')
def test_polygons():
  np.testing.assert_array_equal(Segmentation(mask_of(polygon(MASK))).draw(*MASK.shape), MASK)
  np.testing.assert_array_equal(Segmentation(mask_of(polygon(MASK)[0])).draw(*MASK.shape), MASK)  # not in a list
  (outline,), _ = cv2.findContours(DISC.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
  star = [outline.reshape(-1).tolist(), [1, 1, 9, 1, 9, 9]]
  theirs = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(star, *DISC.shape)))
  np.testing.assert_array_equal(Segmentation(mask_of(star)).draw(*DISC.shape), theirs)


@pytest.mark.parametrize(
  'value, kind',
  [
    ([], problems.NO_MASK),
    ([[]], problems.NO_MASK),
    ({}, problems.NO_MASK),
    ([[3, 3, 3, 3, 3, 3]], problems.NO_MASK),
    ([[0.1, 0.1, 0.9, 0.1, 0.9, 0.9]], problems.MALFORMED_MASK),  # relative coordinates, not pixels
    ([[1, 2, 3, 4, 5, float('nan')]], problems.MALFORMED_MASK),
    ([['1', '2', 'x']], problems.MALFORMED_MASK),
    ([[{}]], problems.MALFORMED_MASK),
    ([[10**400] * 6], problems.MALFORMED_MASK),
    ([[1, 1, 1e300, 1, 5, 5]], problems.LARGE_MASK),
    ({'size': [40, 30], 'counts': [1200]}, problems.MASK_SIZE),
    ({'size': [30, 40], 'counts': [5]}, problems.MALFORMED_MASK),
    ({'size': [30, 40], 'counts': [2**62] * 4}, problems.MALFORMED_MASK),
    ({'size': None, 'counts': [1200]}, problems.MALFORMED_MASK),
    ({'size': [30, 40], 'counts': {}}, problems.MALFORMED_MASK),
    ({'size': [30, 40], 'counts': 'oooooooo'}, problems.MALFORMED_MASK),
  ],
)
def test_invalid_masks_are_refused_with_the_reason(value, kind):
  with pytest.raises(MaskError) as error:
    Segmentation(mask_of(value)).draw(30, 40)
  assert error.value.kind == kind and str(error.value).isprintable()
