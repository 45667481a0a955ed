"""Corrections by clicks: where each click falls, what the model sees, and the figures."""

import numpy as np
import pytest

from ditsam_jax.data import datasets
from ditsam_jax.evaluation import clicks
from ditsam_jax.evaluation.click_pictures import ClickGallery
from ditsam_jax.evaluation.click_results import ClickResults, ClickScore
from ditsam_jax.evaluation.clicks import deepest_error, evaluate_clicks
from ditsam_jax.evaluation.results import Sample
from ditsam_jax.inference.prompts import Prompt
from ditsam_jax.inference.segmenter import Segmenter

SCENES = dict(image_size=64, train=2, val=2, test=2)


def depth(error):
  """Distance of each wrong pixel from the nearest one that is not, or lies outside; by trying all pairs."""
  padded = np.pad(error, 1)
  inside, outside = np.argwhere(padded), np.argwhere(~padded)
  depths = np.zeros(padded.shape)
  for y, x in inside:
    depths[y, x] = np.sqrt(((outside - (y, x)) ** 2).sum(1).min())
  return depths[1:-1, 1:-1]


@pytest.mark.verifies(
  'Corrective clicks of the evaluation', against='distances over all pairs of pixels', within='exact'
)
@pytest.mark.parametrize('seed', range(4))
def test_a_click_falls_on_the_deepest_pixel_of_the_largest_error(seed):
  rng = np.random.default_rng(seed)
  mask, truth = (rng.random((2, 12, 15)) < 0.6).astype(bool)
  missed, included = depth(truth & ~mask), depth(mask & ~truth)
  x, y, label = deepest_error(mask, truth, [])
  chosen = missed if label else included
  assert chosen[y, x] == pytest.approx(max(missed.max(), included.max()), rel=1e-6)


def test_a_pixel_is_clicked_once_and_nothing_is_clicked_if_nothing_is_wrong():
  truth = np.zeros((5, 5), bool)
  truth[1:4, 1:4] = True
  empty = np.zeros_like(truth)
  assert deepest_error(empty, truth, []) == (2, 2, 1)
  assert deepest_error(truth, empty, []) == (2, 2, 0)
  assert deepest_error(empty, truth, [(2, 2)])[:2] != (2, 2)
  assert deepest_error(truth, truth, []) is None
  single = np.zeros_like(truth)
  single[0, 0] = True
  assert deepest_error(empty, single, [(0, 0)]) is None


def test_figures_by_hand():
  def score(position, kind, sentence, clicks):
    return ClickScore(Sample(position, 0, position, kind, 'a', 10, 100), sentence, clicks)

  results = ClickResults.of(
    [
      score(1, 'order', [(5, 10), (8, 10), (9, 10)], [(0, 10), (8, 10)]),
      score(0, 'relation', [(9, 10), (9, 10), (9, 10)], [(5, 10), (5, 10)]),
    ],
    clicks=2,
  )
  assert [sample.position for sample in results.samples] == [0, 1] and results.kinds == ['order', 'relation']
  figures = results.figures()
  assert figures['sentence']['mIoU'] == pytest.approx([70, 85, 90])
  assert figures['clicks']['mIoU'] == pytest.approx([25, 65])
  assert figures['sentence']['NoC'] == {'0.8': 0.5, '0.9': 1.0} and figures['sentence']['missed'] == {
    '0.8': 0,
    '0.9': 0,
  }
  assert figures['clicks']['NoC'] == {'0.8': 2.0, '0.9': 2.0} and figures['clicks']['missed'] == {'0.8': 50, '0.9': 100}
  assert results.figures('order')['sentence']['mIoU'] == pytest.approx([50, 80, 90])
  assert 'all: clicks alone' in results.table() and results.to_csv().count('\n') == 3


@pytest.mark.slow
def test_large_images_are_corrected_a_few_at_a_time_with_the_same_results(tmp_path, monkeypatch):
  segmenter = Segmenter('shapes')
  source = datasets.open_split('shapes', tmp_path, 'test', scenes=SCENES)
  corrected, together = clicks._corrected, []

  def counted(segmenter, pairs, clicks, *, with_text):
    together.append(len(pairs))
    return corrected(segmenter, pairs, clicks, with_text=with_text)

  monkeypatch.setattr(clicks, '_corrected', counted)
  whole = evaluate_clicks(segmenter, source, 1, limit=3)
  monkeypatch.setattr(clicks, '_MOST_PIXELS', 2 * 2 * 2 * 64 * 64)
  parts = evaluate_clicks(segmenter, source, 1, limit=3)
  assert together == [3, 3, 2, 2, 1, 1] and parts.to_csv() == whole.to_csv()


@pytest.mark.slow
def test_each_mask_is_that_of_the_sentence_its_clicks_and_the_mask_before(tmp_path):
  segmenter = Segmenter('shapes')
  source = datasets.open_split('shapes', tmp_path, 'test', scenes=SCENES)
  seen = []
  gallery = ClickGallery()

  def offer(sample, truth, predictions, ious):
    gallery.offer(sample, truth, predictions, ious)
    seen.append((sample, truth, predictions, ious))

  results = evaluate_clicks(segmenter, source, 2, limit=3, offer=offer)
  assert results.sentence.shape == (3, 3) and results.clicks.shape == (3, 2)
  for sample, truth, (first, second, third), ious in seen:
    alone = segmenter(first.image, sample.expression)
    assert np.count_nonzero(alone.mask != first.mask) <= 2  # batches round differently
    x, y, label = deepest_error(first.mask, truth, [])
    if second is not first:
      np.testing.assert_array_equal(second.prompt.points, [[x, y]])
      assert second.prompt.labels.tolist() == [label]
      asked = Prompt(sample.expression, points=[[x, y]], labels=[label], mask=first.low_res_logits[0])
      np.testing.assert_allclose(segmenter(first.image, asked).low_res_logits, second.low_res_logits, atol=1e-3)
    if third is not second:
      assert len(third.prompt.points) == 2 and third.prompt.mask is not None
    for prediction, iou in zip((first, second, third), ious):
      overlap = np.count_nonzero(prediction.mask & truth) / np.count_nonzero(prediction.mask | truth)
      assert iou == pytest.approx(overlap)
  panel = gallery.panel('shapes')
  assert panel.width > 4 * 224 and panel.height > 3 * 224
