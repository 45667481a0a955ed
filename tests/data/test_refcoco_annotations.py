"""Masks of COCO annotations, compared with hand-made masks, OpenCV and pycocotools."""

import json

import cv2
import numpy as np
import pytest
from hypothesis import given, settings, strategies
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco_mask

from ditsam_jax.data.preparation import problems
from ditsam_jax.data.preparation.masks import MaskError, draw
from ditsam_jax.data.refcoco.annotations import Annotation, ImageInfo, read_instances
from ditsam_jax.errors import UserError
from tests.data.refcoco_downloads import compressed, disc, rectangle, run_lengths


def polygons(*parts):
  return [np.array(part, np.float64) for part in parts]


def test_a_rectangle_covers_its_pixels():
  polygon, mask = rectangle(30, 40, 3, 5, 20, 31)
  np.testing.assert_array_equal(draw(polygons(polygon), 30, 40), mask)


def test_overlapping_polygons_are_united():
  first, one = rectangle(30, 40, 3, 5, 20, 31)
  second, two = rectangle(30, 40, 10, 20, 28, 40)
  np.testing.assert_array_equal(draw(polygons(first, second), 30, 40), one | two)


@pytest.mark.verifies('Masks of polygons', against="OpenCV's pointPolygonTest", within='equal, but for the outline')
def test_a_curved_polygon_covers_the_pixels_whose_centres_it_contains():
  angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
  points = np.stack([50 + 31 * np.cos(angles), 40 + 23 * np.sin(3 * angles)], -1).astype(np.float32)
  mask = draw(polygons(points.reshape(-1)), 80, 100)
  depth = np.array([[cv2.pointPolygonTest(points, (x + 0.5, y + 0.5), True) for x in range(100)] for y in range(80)])
  clear = np.abs(depth) > 0.75  # COCO rounds the outline to fifths of a pixel, then to whole pixels
  assert mask.sum() > 1000 and clear.sum() > 6000
  np.testing.assert_array_equal(mask[clear], depth[clear] > 0)


def test_run_lengths_go_down_the_columns():
  mask = draw({'size': [3, 4], 'counts': [1, 2, 4, 5]}, 3, 4)
  np.testing.assert_array_equal(mask.astype(int), [[0, 0, 0, 1], [1, 0, 1, 1], [1, 0, 1, 1]])


@settings(max_examples=40, deadline=None)
@given(arrays.arrays(bool, strategies.tuples(strategies.integers(1, 40), strategies.integers(1, 40))))
def test_compressed_and_uncompressed_run_lengths_decode_to_the_mask(mask):
  if not mask.any():
    return
  for counts in (run_lengths(mask), compressed(mask)['counts'], compressed(mask)['counts'].encode()):
    np.testing.assert_array_equal(draw({'size': list(mask.shape), 'counts': counts}, *mask.shape), mask)


@pytest.mark.verifies('Masks of compressed run lengths', against='pycocotools', within='equal')
def test_long_runs_survive_compression():
  mask = disc(480, 640)
  np.testing.assert_array_equal(draw(compressed(mask), 480, 640), mask)
  assert coco_mask.area(compressed(mask)) == mask.sum()


@pytest.mark.parametrize(
  'segmentation, kind',
  [
    (None, problems.NO_MASK),
    ([], problems.NO_MASK),
    (polygons([]), problems.NO_MASK),
    ({}, problems.NO_MASK),
    (polygons([1, 1, 5, 5]), problems.NO_MASK),  # two points: pycocotools would draw a box
    (polygons([3, 3, 3, 3, 3, 3]), problems.NO_MASK),
    ({'size': [10, 12], 'counts': [120]}, problems.NO_MASK),
    (polygons([1, 1, 5, 5, 9]), problems.MALFORMED_MASK),
    (polygons([1, 1, 5, np.nan, 3, 3]), problems.MALFORMED_MASK),
    (polygons([1, 1, 5, np.inf, 3, 3]), problems.MALFORMED_MASK),
    ({'size': [10, 12], 'counts': [5, 5]}, problems.MALFORMED_MASK),
    ({'size': [10, 12], 'counts': [5, -5, 120]}, problems.MALFORMED_MASK),
    ({'size': [10, 12], 'counts': ['a']}, problems.MALFORMED_MASK),
    ({'counts': [120]}, problems.MALFORMED_MASK),
    ({'size': [10, 12], 'counts': 'PPPP\x07'}, problems.MALFORMED_MASK),
    ({'size': [10, 12], 'counts': 'oooooooooooooooo'}, problems.MALFORMED_MASK),
    ({'size': [10, 12], 'counts': 'caf\xe9'}, problems.MALFORMED_MASK),
    ({'size': [12, 10], 'counts': [20, 100]}, problems.LARGE_MASK),
    ({'size': [20, 24], 'counts': [20, 460]}, problems.LARGE_MASK),
    (polygons([1, 1, 17.5, 1, 5, 5]), problems.LARGE_MASK),
    (polygons([1, 1, 1e12, 1, 5, 5]), problems.LARGE_MASK),
    (polygons([-6, 1, 6, 1, 5, 5]), problems.LARGE_MASK),
  ],
)
def test_invalid_masks_are_refused_with_the_reason(segmentation, kind):
  with pytest.raises(MaskError) as error:
    draw(segmentation, 10, 12)
  assert error.value.kind == kind


def test_a_polygon_may_touch_the_border():
  polygon, mask = rectangle(10, 12, 0, 0, 10, 12)
  np.testing.assert_array_equal(draw(polygons(polygon), 10, 12), mask)
  np.testing.assert_array_equal(draw(polygons(np.array(polygon) + 0.4), 10, 12), mask)


CONTENT = {
  'images': [{'id': 1, 'file_name': 'a.jpg', 'height': 5, 'width': 6}, {'id': 2, 'file_name': 'b.jpg'}],
  'annotations': [
    {'id': 3, 'image_id': 1, 'category_id': 4, 'segmentation': [[1, 2, 3, 4, 5, 6]]},
    {'id': 4, 'image_id': 1, 'category_id': 4, 'segmentation': [[0] * 6]},
    {'id': 5, 'image_id': 1, 'category_id': 4},
    {'id': 6, 'image_id': 1, 'category_id': 4, 'segmentation': [['x']]},
  ],
  'categories': [{'id': 4, 'name': 'cat'}],
}


def test_only_requested_images_and_annotations_are_kept(tmp_path):
  file = tmp_path / 'instances.json'
  file.write_text(json.dumps(CONTENT))
  instances = read_instances(file, {1}, {3, 5})
  assert instances.images == {1: ImageInfo('a.jpg', 5, 6)} and instances.categories == {4: 'cat'}
  assert set(instances.annotations) == {3, 5} and instances.annotations[5] == Annotation(1, 4, None)
  np.testing.assert_array_equal(instances.annotations[3].segmentation, [[1, 2, 3, 4, 5, 6]])
  with pytest.raises(MaskError):
    draw(read_instances(file, {1}, {6}).annotations[6].segmentation, 5, 6)


@pytest.mark.parametrize(
  'kind, again, problem',
  [
    ('images', {'id': 1, 'file_name': 'a.jpg', 'height': 5, 'width': 6}, None),
    ('images', {'id': 1, 'file_name': 'z.jpg', 'height': 5, 'width': 6}, 'two images with id 1'),
    ('annotations', {'id': 3, 'image_id': 1, 'category_id': 4, 'segmentation': [[1, 2, 3, 4, 5, 6]]}, None),
    (
      'annotations',
      {'id': 3, 'image_id': 1, 'category_id': 4, 'segmentation': [[1, 2, 3, 4, 5, 7]]},
      'two annotations',
    ),
    ('annotations', {'id': 4, 'image_id': 1, 'category_id': 4, 'segmentation': [[1] * 6]}, None),  # not requested
    ('categories', {'id': 4, 'name': 'dog'}, 'two categories with id 4, which differ; remove one'),
  ],
)
def test_two_of_the_same_id_are_refused_unless_they_are_equal(tmp_path, kind, again, problem):
  file = tmp_path / 'instances.json'
  file.write_text(json.dumps(CONTENT | {kind: [*CONTENT[kind], again]}))
  if problem is None:
    assert set(read_instances(file, {1}, {3}).annotations) == {3}
    return
  with pytest.raises(UserError, match=problem):
    read_instances(file, {1}, {3})


@pytest.mark.parametrize(
  'content',
  [
    '',
    '{}',
    '[1]',
    '{"images": [{}], "annotations": [], "categories": []}',
    '{"images": [], "annotations": [3], "categories": []}',
  ],
)
def test_files_in_another_format_are_refused(tmp_path, content):
  file = tmp_path / 'instances.json'
  file.write_text(content)
  with pytest.raises(UserError, match='instances.json is'):
    read_instances(file, {1}, {3})
  with pytest.raises(UserError, match='no.json: no such file'):
    read_instances(tmp_path / 'no.json', {1}, {3})
