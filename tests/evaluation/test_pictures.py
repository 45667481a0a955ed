"""Galleries sample uniformly with bounded memory; contact sheets show images unchanged."""

from types import SimpleNamespace

import numpy as np

from ditsam_jax.drawing.sheets import Reservoir
from ditsam_jax.evaluation.pictures import (
  Gallery,
  Shown,
  prediction_panel,
  worst_median_best,
)
from ditsam_jax.geometry.letterbox import Letterbox, normalise

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def disc(height, width, radius):
  rows, columns = np.mgrid[:height, :width]
  return (rows - height // 2) ** 2 + (columns - width // 2) ** 2 < radius**2


def offered(gallery, count, iou_of=lambda i: 1.0, kind_of=lambda i: 'order', size=8):
  image = np.zeros((size, size, 3), np.float32)
  mask = np.ones((size, size), bool)
  for i in range(count):
    info = SimpleNamespace(expression=str(i), kind=kind_of(i), letterbox=Letterbox(0, 0, size, size))
    gallery.offer(image, info, mask, mask, iou_of(i))
  return gallery.sections()


def names(samples):
  return [int(shown.expression) for shown in samples]


def test_rare_kinds_are_drawn_equally_often():
  def kind(i):
    return 'rare' if i % 100 == 7 else 'order' if i % 2 else 'attribute'

  def iou(i):
    return 0.2 if i % 10 == 7 else 0.9

  (_, drawn), (title, failures) = offered(Gallery(MEAN, STD), 1000, iou, kind)
  assert [shown.kind for shown in drawn] == ['attribute'] * 2 + ['order'] * 2 + ['rare'] * 2
  assert [shown.kind for shown in failures] == ['order', 'rare'] * 3
  assert '100 of 1,000' in title and '10.0 %' in title
  assert all(shown.iou == 0.2 for shown in failures)


def test_the_random_selection_is_independent_of_the_model():
  reservoir = Reservoir(10)
  for i in range(100):
    reservoir.offer(lambda i=i: i)
  for iou in (0.1, 0.9):
    assert names(offered(Gallery(MEAN, STD), 100, lambda _: iou)[0][1]) == reservoir.kept


def test_a_panel_of_fixed_samples_leaves_out_failures_and_differs_in_predictions_only():
  panels = []
  for iou in (0.1, 0.9):
    gallery = Gallery(MEAN, STD)
    offered(gallery, 100, lambda _: iou)
    panels.append(np.asarray(gallery.fixed_panel('heading')))
  first, second = panels
  assert first.shape == second.shape and 0 < (first != second).any(axis=-1).mean() < 0.1  # badges
  assert first.shape[0] < gallery.panel('heading').height  # which has a title for failures


def test_the_absence_of_failures_is_reported():
  (_, drawn), (title, failures) = offered(Gallery(MEAN, STD), 30)
  assert len(drawn) == 10 and failures == [] and '0 of 30' in title


def test_memory_is_bounded_and_keeps_no_batch_alive():
  gallery = Gallery(MEAN, STD)
  (_, drawn), (_, failures) = offered(gallery, 2000, lambda i: 0.0)
  assert len(drawn) == 10 and len(failures) == 6
  assert all(array.base is None for shown in drawn for array in (shown.image, shown.prediction, shown.truth))


def test_images_are_restored_without_padding():
  pixels = np.random.default_rng(0).integers(0, 256, (6, 12, 3), np.uint8)
  square = np.zeros((12, 12, 3), np.float32)
  box = Letterbox(3, 0, 6, 12)
  square[box.window] = normalise(pixels, MEAN, STD)
  mask = np.zeros((12, 12), np.uint8)
  mask[4, 5] = 1
  gallery = Gallery(MEAN, STD)
  info = SimpleNamespace(expression='a', kind='', letterbox=box)
  gallery.offer(square, info, mask.astype(bool), mask, 1.0)
  shown = gallery.sections()[0][1][0]
  np.testing.assert_array_equal(shown.image, pixels)
  assert shown.truth.shape == (6, 12) and shown.truth[1, 5] and shown.truth.sum() == 1


def test_sheets_grow_by_rows_and_show_wide_and_tall_images():
  def shown(height, width):
    image = np.full((height, width, 3), 250, np.uint8)
    return Shown(image, 'word ' * 60, 'order', disc(height, width, 5), np.zeros((height, width), bool), 0.7)

  two = prediction_panel([('title', [shown(20, 300), shown(300, 20)])])
  three = prediction_panel([('title', [shown(1, 1), shown(300, 20), shown(64, 64)])])
  assert two.width == three.width and two.height < three.height


def test_worst_median_and_best_samples():
  ious = np.random.default_rng(0).permutation(100) / 100
  (_, worst), (_, median), (title, best) = worst_median_best(ious, 4)
  assert ious[worst].tolist() == [0, 0.01, 0.02, 0.03]
  assert ious[median].tolist() == [0.48, 0.49, 0.5, 0.51]
  assert ious[best].tolist() == [0.96, 0.97, 0.98, 0.99] and title == 'Best 4 of 100 samples'
  assert [len(places) for _, places in worst_median_best(ious[:2], 5)] == [2, 2, 2]


def test_ties_are_spread_over_the_split_and_reproducible():
  ious = np.zeros(1000)
  (_, worst), *_ = worst_median_best(ious, 10)
  assert max(worst) > 500 and worst == worst_median_best(ious, 10)[0][1]
