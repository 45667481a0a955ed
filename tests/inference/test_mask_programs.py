"""Tiled resizing, measuring and suppression of masks, compared with plain NumPy and OpenCV."""

import tracemalloc

import cv2
import numpy as np
import pytest

from ditsam_jax.inference import mask_programs
from ditsam_jax.inference.framing import frame
from ditsam_jax.inference.mask_programs import Measures, kept_boxes, tiles_of
from ditsam_jax.models.config import sam, tiny
from tests.meta_sam import batched_nms

SAM = sam(tiny(text_encoder=None, fusion='none'))
CENTRED = tiny()  # aligned corners, the image centred in the square


def smooth(count, seed=0, size=32):
  rng = np.random.default_rng(seed)
  return [cv2.GaussianBlur(rng.normal(size=(size, size)).astype(np.float32), (0, 0), 3) * 4 for _ in range(count)]


@pytest.mark.parametrize('config', [SAM, CENTRED], ids=['top left', 'centred'])
@pytest.mark.parametrize('size', [(128, 128), (70, 200), (333, 129)])
def test_tiles_add_up_to_the_logits_at_the_own_size(config, size):
  framed = frame(np.zeros((*size, 3), np.uint8), config)
  logits = smooth(3)
  expected = framed.own_size(np.stack(logits))
  tiles = tiles_of(*framed.own_size_operators(), 64)
  wanted = np.random.default_rng(1).random((64 * 6, 64 * 6)) < 0.3
  measures, drawn = Measures.none(3), np.zeros((3, *size), bool)
  for tile in tiles:
    part = wanted[tile.top :, tile.left :][:64, :64]
    measures = mask_programs.measure(measures, logits, tile, part, np.float32(0.2), np.float32(0.3))
    bits = np.unpackbits(np.asarray(mask_programs.draw(logits, tile, np.float32(0.2))), axis=2)
    part = drawn[:, tile.top : tile.top + tile.height, tile.left : tile.left + tile.width]
    part[:] = bits[: tile.height, :, : tile.width].transpose(1, 0, 2)
  # Rounding may flip a pixel at the threshold.
  assert (drawn != (expected > 0.2)).sum() <= 2
  np.testing.assert_allclose(measures.area, (expected > 0.2).sum((1, 2)), atol=1)
  inside = (expected > 0.2) & wanted[: size[0], : size[1]]
  np.testing.assert_allclose(measures.inside, inside.sum((1, 2)), atol=1)
  np.testing.assert_allclose(measures.inner, (expected > 0.5).sum((1, 2)), atol=1)
  np.testing.assert_allclose(measures.outer, (expected > -0.1).sum((1, 2)), atol=1)
  for i, mask in enumerate(drawn):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = [int(array[i]) for array in (measures.left, measures.top, measures.right, measures.bottom)]
    assert box == [columns[0], rows[0], columns[-1], rows[-1]]


def test_operators_are_not_kept():
  framed = [frame(np.zeros((side, 2 * side, 3), np.uint8), SAM) for side in range(500, 520)]
  framed[0].own_size_operators()
  tracemalloc.start()
  try:
    for each in framed:
      each.own_size_operators()
    assert tracemalloc.get_traced_memory()[0] < 2**20
  finally:
    tracemalloc.stop()


def judged(inner, outer, box, *, threshold=0.5, area=0, inside=0, crop=(0, 0, 100, 100), image=(0, 0, 100, 100)):
  measures = Measures(*(np.array([value], np.int32) for value in (area, inside, inner, outer, *box)))
  crop, image = (np.array(values, np.float32) for values in (crop, image))
  arrays = mask_programs.judge(measures, np.float32(threshold), np.float32(0.75), crop, image, np.float32(20))
  return [np.asarray(array)[0].tolist() for array in arrays]


def test_stability_is_a_ratio_with_an_inclusive_threshold():
  assert judged(5, 10, (40, 40, 50, 50)) == [True, 0.5, [40, 40, 50, 50]]
  assert judged(4, 10, (40, 40, 50, 50))[0] is False


def test_masks_outside_the_given_one_are_dropped():
  assert judged(1, 1, (40, 40, 50, 50), area=4, inside=3)[0] is True
  assert judged(1, 1, (40, 40, 50, 50), area=8, inside=5)[0] is False


def test_an_empty_mask_is_kept_only_without_a_stability_threshold():
  far = np.iinfo(np.int32).max
  assert judged(0, 0, (far, far, -1, -1))[0] is False
  kept, stability, box = judged(0, 0, (far, far, -1, -1), threshold=0)
  assert kept and np.isnan(stability) and box == [0, 0, 0, 0]


@pytest.mark.parametrize(
  'box, kept',
  [((30, 30, 60, 60), True), ((20, 40, 60, 60), False), ((21, 40, 60, 60), True), ((30, 30, 60, 99), True)],
)
def test_masks_at_an_edge_of_a_crop_are_dropped_unless_it_is_the_edge_of_the_image(box, kept):
  # In pixels of the crop; its left edge is inside the image, its lower edge is the image's.
  crop, image = (50, 0, 150, 100), (0, 0, 400, 100)
  assert judged(1, 1, box, crop=crop, image=image)[0] is kept


def boxes_of(count, seed):
  rng = np.random.default_rng(seed)
  corners = rng.integers(0, 40, (count, 2))
  return np.hstack([corners, corners + rng.integers(0, 30, (count, 2))]).astype(np.float32)


@pytest.mark.verifies('Suppression of duplicates', against='non-maximum suppression in PyTorch', within='equal')
@pytest.mark.parametrize('count', [0, 1, 2, 65, 200, 1025])
def test_the_same_boxes_are_kept_in_the_same_order(count):
  torch = pytest.importorskip('torch')
  boxes = boxes_of(count, count)
  scores = np.random.default_rng(count).integers(0, 20, count).astype(np.float32)  # many are equal
  for threshold in (0.0, 0.3, 0.7):
    expected = batched_nms(torch.as_tensor(boxes), torch.as_tensor(scores), torch.zeros(count), threshold)
    assert kept_boxes(boxes, scores, threshold).tolist() == expected.tolist()
