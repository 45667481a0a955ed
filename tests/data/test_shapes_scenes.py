"""Masks agree with plane geometry and with the colours in the picture."""

import functools

import numpy as np
import pytest

from ditsam_jax.data.shapes.scenes import COLOURS, ScenesConfig, make_scene, scene_rng
from ditsam_jax.errors import UserError

CONFIG = ScenesConfig()


@functools.cache
def scenes(count=60):
  return [make_scene(CONFIG, scene_rng(CONFIG, 'val', i)) for i in range(count)]


def test_masks_are_disjoint():
  for scene in scenes():
    assert scene.masks.sum(axis=0).max() == 1


def test_shapes_lie_inside_the_picture():
  for scene in scenes():
    for shape in scene.shapes:
      assert min(shape.x, shape.y) > shape.reach
      assert max(shape.x, shape.y) < CONFIG.image_size - shape.reach
    border = np.ones((CONFIG.image_size,) * 2, bool)
    border[1:-1, 1:-1] = False
    assert not (scene.masks & border).any()


def full_area(shape):
  """Unoccluded area by textbook formulas from the circumradius r, px^2."""
  r = shape.reach
  return {
    'circle': np.pi * r**2,
    'square': 2 * r**2,
    'triangle': 3 * np.sqrt(3) / 4 * r**2,
    'star': 5 * r * 0.46 * r * np.sin(np.pi / 5),  # ten triangles between an outer and an inner corner
    'cross': 4 * (2 * 0.36 - 0.36**2) * r**2 / (1 + 0.36**2),  # two bars minus their intersection
  }[shape.kind]


def outline_length(mask):
  """The number of mask pixels that touch a pixel outside the mask."""
  padded = np.pad(mask, 1)
  inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
  return (mask & ~inside).sum()


def test_masks_have_the_area_of_their_shape_minus_occlusion():
  visible, unhidden = [], []
  for scene in scenes():
    for shape, mask in zip(scene.shapes, scene.masks):
      visible.append(mask.sum() / full_area(shape))
      # Pixels count if at least half covered, which moves an edge on the grid by up to half a pixel; drawing adds 0.1.
      assert mask.sum() - full_area(shape) < 0.6 * outline_length(mask), shape
    unhidden.append(visible[-1])  # the last shape is in front
  assert min(visible) > 1 - CONFIG.max_occlusion - 0.03
  assert np.sum(np.array(visible) < 0.9) > 20
  assert min(unhidden) > 0.96
  assert 1 <= np.mean(unhidden) < 1.03  # rounding averages out, the extra 0.1 px does not


def signed_distance(shape, side):
  """Signed distance of each pixel centre to the outline of a circle or square, positive inside, px."""
  centres = np.arange(side) + 0.5
  x, y = np.meshgrid(centres - shape.x, centres - shape.y)
  if shape.kind == 'circle':
    return shape.radius - np.hypot(x, y)
  c, s = np.cos(shape.angle), np.sin(shape.angle)
  return shape.reach / np.sqrt(2) - np.maximum(np.abs(c * x + s * y), np.abs(c * y - s * x))


def test_masks_of_circles_and_squares_match_their_outline():
  seen = 0
  for scene in scenes():
    for i, shape in enumerate(scene.shapes):
      if shape.kind not in ('circle', 'square'):
        continue
      inside = signed_distance(shape, CONFIG.image_size)
      in_front = scene.masks[i + 1 :].any(axis=0)
      assert not scene.masks[i][inside < -0.6].any()
      assert scene.masks[i][(inside > 0.6) & ~in_front].all()
      seen += 1
  assert seen > 50


def test_pixels_inside_a_mask_have_the_named_colour():
  nominal = np.array(list(COLOURS.values()))
  for scene in scenes():
    for shape, mask in zip(scene.shapes, scene.masks):
      colour = np.median(scene.image[mask], axis=0)
      distances = np.linalg.norm(nominal - colour, axis=1)
      assert list(COLOURS)[distances.argmin()] == shape.colour
      assert distances.min() < 60


def test_backgrounds_are_dull_textured_and_vary_between_scenes():
  means = []
  for scene in scenes():
    background = scene.image[~scene.masks.any(axis=0)].astype(float)
    means.append(background.mean())
    colourfulness = background.max(axis=1) - background.min(axis=1)
    assert np.percentile(colourfulness, 95) < 70  # shapes have at least 120
    assert background.std() > 3
  assert np.std(means) > 15


def test_size_ranges_of_small_and_large_do_not_overlap():
  shapes = [shape for scene in scenes() for shape in scene.shapes]
  small, large = ([s for s in shapes if s.size == size] for size in ('small', 'large'))
  assert min(s.radius for s in large) > 1.25 * max(s.radius for s in small)
  assert min(map(full_area, large)) > 1.1 * max(map(full_area, small))


def test_a_scene_depends_only_on_seed_split_and_index():
  key = lambda config, split, i: make_scene(config, scene_rng(config, split, i)).image.tobytes()
  assert key(CONFIG, 'train', 7) == key(CONFIG, 'train', 7)
  different = {key(CONFIG, split, i) for split in ('train', 'val', 'test') for i in range(40)}
  different |= {key(ScenesConfig(seed=1), 'train', i) for i in range(40)}
  assert len(different) == 160


def test_scenes_scale_with_the_image_size():
  config = ScenesConfig(image_size=256)
  scene = make_scene(config, scene_rng(config, 'train', 3))
  assert scene.image.shape == (256, 256, 3) and scene.masks.shape[1:] == (256, 256)
  assert all(0.07 * 256 < s.radius < 0.18 * 256 for s in scene.shapes)


@pytest.mark.parametrize(
  'change',
  [
    {'image_size': 8},
    {'min_shapes': 9},
    {'colours': ('red', 'pink')},
    {'kinds_per_scene': (3, 2)},
    {'large_radius': (0.1, 0.2)},
    {'max_occlusion': 1.5},
    {'seed': -1},
    {'val': 0},
    {'expressions_per_object': 0},
    {'phrases_per_scene': 93},  # beside 8 shapes
  ],
)
def test_impossible_settings_are_named(change):
  [(name, value)] = change.items()
  with pytest.raises(UserError) as error:
    ScenesConfig(**change)
  assert name in str(error.value) and str(value) in str(error.value)


def test_shapes_that_cannot_fit_are_reported():
  config = ScenesConfig(min_shapes=40, max_shapes=40)
  with pytest.raises(UserError, match='do not fit'):
    make_scene(config, scene_rng(config, 'train', 0))
