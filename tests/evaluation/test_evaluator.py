"""Scoring a split: the release's numbers, groups, padding rows, image sizes, protocols, samples without a target."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from ditsam_jax.data import datasets
from ditsam_jax.data.evaluation_batches import EvaluationSample
from ditsam_jax.errors import UserError
from ditsam_jax.evaluation.evaluator import evaluate_split, pictures_of, scores
from ditsam_jax.evaluation.pictures import Gallery
from ditsam_jax.evaluation.protocols import PROTOCOLS
from ditsam_jax.evaluation.results import Results
from ditsam_jax.geometry.letterbox import Letterbox
from ditsam_jax.tokenization import Tokenizer
from tests.small_models import small_config

GOLDEN = Path(__file__).parents[1] / 'golden' / 'metrics.npz'
OBJECTS = ('red box', 'red star', 'blue star', 'blue box')


def info_of(mask, letterbox, kind='', expression='the red box', object_index=0):
  return EvaluationSample(1, 10 + object_index, object_index, OBJECTS, expression, kind, mask, letterbox)


def batch_of(logits, infos, valid=None):
  """A batch as from evaluation_batches; the fake forward reads its logits from the images."""
  size = logits.shape[-1]
  targets = np.zeros((len(infos), size, size), np.uint8)
  for target, info in zip(targets, infos):
    if info.mask.shape == info.letterbox[2:]:
      target[info.letterbox.window] = info.mask
  valid = np.ones(len(infos), bool) if valid is None else np.array(valid)
  return {'image': np.repeat(logits[..., None], 3, -1), 'mask': targets, 'valid': valid}, infos


def first_channel(batch):
  return batch['image'][..., 0]


def evaluate(forward, batches, *, threshold, protocols=tuple(PROTOCOLS), **more):
  return Results.of(scores(forward, batches, threshold, protocols, **more), protocols)


def squares(kinds, overlaps):
  """Samples of 10 x 10 pixels: the truth is rows 0 and 1, the prediction starts row 0."""
  truth = np.zeros((10, 10), bool)
  truth[:2] = True
  logits = np.full((len(overlaps), 10, 10), -9.0, np.float32)
  for square, overlap in zip(logits, overlaps):
    square[0, :overlap] = 9.0
  return logits, [info_of(truth, Letterbox(0, 0, 10, 10), kind) for kind in kinds]


@pytest.mark.verifies(
  'Pixel counts and IoU of every sample, and the rates of a split', against='the DIT release', within='1e-9'
)
def test_metrics_equal_the_releases():
  with np.load(GOLDEN) as file:
    golden = dict(file)
  count = len(golden['iou'])
  infos = []
  for i in range(count):
    height, width, inner_height, inner_width, left, top = golden[f'{i}/info'].tolist()
    mask = golden[f'{i}/gt'].astype(bool)
    assert mask.shape == (height, width)
    infos.append(info_of(mask, Letterbox(top, left, inner_height, inner_width)))
  logits = np.stack([golden[f'{i}/logits'] for i in range(count)]).astype(np.float32)
  halves = [batch_of(logits[part], infos[part]) for part in (slice(0, 10), slice(10, None))]
  results = evaluate(first_channel, halves, threshold=0.35)
  np.testing.assert_array_equal(results.overlaps['release'].T, [golden['intersection'], golden['union']])
  assert results.iou('release').tolist() == pytest.approx(golden['iou'], abs=1e-9)
  figures = results.metrics()
  for name in set(figures) - {'mIoU'}:
    assert figures[name] == pytest.approx(float(golden[name]), abs=1e-9)
  assert figures['mIoU'] == results.miou == pytest.approx(100 * golden['iou'].mean(), abs=1e-9)
  assert results.miou == pytest.approx(float(golden['mIoU']), rel=1e-7)  # stored as float32
  assert not results.protocols_agree
  # Masks are smaller if the threshold is applied after resizing.
  assert results.overlaps['standard'].sum() < results.overlaps['release'].sum()


def test_metrics_by_kind_and_in_total():
  logits, infos = squares(['order', 'negation', 'order'], [10, 4, 0])  # IoU 0.5, 0.2, 0
  results = evaluate(first_channel, [batch_of(logits, infos)], threshold=0.5)
  assert results.protocols_agree and results.kinds == ['negation', 'order']
  assert results.miou == pytest.approx(100 * 0.7 / 3)
  assert results.metrics('standard', 'order')['mIoU'] == pytest.approx(25)
  assert results.metrics(kind='order')['oIoU'] == pytest.approx(100 * 10 / 40)
  figures = json.loads(json.dumps(results.to_json()))
  assert figures['samples'] == 3 and figures['kinds']['negation']['samples'] == 1
  assert figures['kinds']['negation']['release']['mIoU'] == pytest.approx(20)
  header, every, *by_kind = [line.split() for line in results.table().splitlines()[1:]]
  assert header[:2] == ['samples', 'mIoU'] and every[:3] == ['all', '3', '23.33']
  assert [row[:3] for row in by_kind] == [['negation', '1', '20.00'], ['order', '2', '25.00']]


def test_chance_is_averaged_over_samples_and_only_reported_for_shapes():
  logits, infos = squares(['attribute', 'order'], [10, 10])
  sentence = 'the second shape from the left'
  infos[1] = info_of(infos[1].mask, infos[1].letterbox, 'order', sentence, object_index=3)
  results = evaluate(first_channel, [batch_of(logits, infos)], threshold=0.5)
  # 'red' matches two of four objects, an expression without a colour all four.
  figures = results.to_json()
  assert figures['chance'] == pytest.approx({'random object': 25, 'colours only': (50 + 25) / 2})
  assert figures['kinds']['attribute']['chance'] == pytest.approx({'random object': 25, 'colours only': 50})
  without = evaluate(first_channel, [batch_of(*squares(['', ''], [1, 2]))], threshold=0.5)
  assert 'chance' not in without.to_json() and without.kinds == []
  unparsed = evaluate(first_channel, [batch_of(logits, infos)], threshold=0.5, guess=False)
  assert 'chance' not in unparsed.to_json() and unparsed.kinds == results.kinds
  assert len(without.table().splitlines()) == 3


def test_padding_rows_do_not_count():
  logits, infos = squares([''] * 3, [10, 4, 4])
  batches = [batch_of(logits, infos), batch_of(logits, infos, [False, True, False])]
  done, gallery = [], Gallery((0, 0, 0), (1, 1, 1))
  results = evaluate(first_channel, batches, threshold=0.5, gallery=gallery, advance=done.append)
  assert results.iou('release').tolist() == pytest.approx([0.5, 0.2, 0.2, 0.2])
  assert done == [3, 1]
  assert len(gallery.sections()[0][1]) == 4


def test_nan_is_refused_instead_of_scored_as_nothing():
  """No comparison with NaN is true, so it would be an empty mask, which is right where there is no target."""
  logits, infos = squares([''] * 2, [10, 4])
  logits[1, 3, 3] = np.nan
  infos[1] = info_of(np.zeros((10, 10), bool), Letterbox(0, 0, 10, 10))
  with pytest.raises(UserError, match="the model gives NaN for 'the red box' on image 1, expected numbers"):
    evaluate(first_channel, [batch_of(logits, infos)], threshold=0.5)


def test_samples_of_any_size_share_a_batch():
  rng = np.random.default_rng(1)
  logits = rng.normal(0, 2, (3, 16, 16)).astype(np.float32)
  boxes = [Letterbox(0, 0, 16, 16), Letterbox(4, 0, 8, 16), Letterbox(0, 0, 16, 16)]
  sizes = (16, 16), (8, 16), (40, 40)
  infos = [info_of(rng.random(size) > 0.5, box) for size, box in zip(sizes, boxes)]
  together = evaluate(first_channel, [batch_of(logits, infos)], threshold=0.35)
  alone = [evaluate(first_channel, [batch_of(logits[i : i + 1], infos[i : i + 1])], threshold=0.35) for i in range(3)]
  for protocol in ('release', 'standard'):
    expected = [result.overlaps[protocol][0] for result in alone]
    np.testing.assert_array_equal(together.overlaps[protocol], expected)
  # By hand: the second image is padded, not scaled.
  predicted = logits[1, 4:12] > np.log(0.35 / 0.65)
  expected = [(predicted & infos[1].mask).sum(), (predicted | infos[1].mask).sum()]
  np.testing.assert_array_equal(together.overlaps['release'][1], expected)
  assert together.table().count('protocol') == 2


def test_a_single_protocol_gives_the_same_as_both():
  rng = np.random.default_rng(2)
  logits = rng.normal(0, 2, (2, 16, 16)).astype(np.float32)
  infos = [info_of(rng.random((24, 24)) > 0.5, Letterbox(0, 0, 16, 16)) for _ in range(2)]
  both = evaluate(first_channel, [batch_of(logits, infos)], threshold=0.35)
  for protocol in both.protocols:
    alone = evaluate(first_channel, [batch_of(logits, infos)], threshold=0.35, protocols=[protocol])
    assert alone.protocols == [protocol] and not alone.protocols_agree
    assert alone.metrics() == both.metrics(protocol) and alone.table().count('protocol') == 1
    assert set(alone.to_json()) == {'samples', protocol, 'kinds', 'breakdowns'}


def test_expressions_without_a_target_add_grefcocos_metrics():
  logits, infos = squares(['', '', ''], [10, 0, 3])
  nothing = np.zeros((10, 10), bool)
  infos[1:] = [info_of(nothing, infos[0].letterbox, expression=text) for text in ('no such thing', 'nor this')]
  results = evaluate(first_channel, [batch_of(logits, infos)], threshold=0.5)
  assert [sample.target_pixels for sample in results.samples] == [20, 0, 0]
  assert all(sample.image_pixels == 100 for sample in results.samples)
  figures = results.metrics()
  assert figures['gIoU'] == pytest.approx(100 * (0.5 + 1 + 0) / 3)
  assert figures['cIoU'] == pytest.approx(100 * 10 / (20 + 0 + 3))
  assert figures['N-acc'] == 50 and figures['T-acc'] == 100 and figures['Pr@0.70'] == 0
  assert 'gIoU' in results.table() and results.to_json()['breakdowns']['target size']['none']['samples'] == 2
  assert 'gIoU' not in evaluate(first_channel, [batch_of(*squares([''], [5]))], threshold=0.5).metrics()


def test_csv_contains_all_samples_with_any_expression():
  logits, infos = squares(['', ''], [10, 0])
  infos[1] = info_of(infos[1].mask, infos[1].letterbox, expression='the "red" box,\nor so')
  results = evaluate(first_channel, [batch_of(logits, infos)], threshold=0.5)
  rows = list(csv.DictReader(io.StringIO(results.to_csv())))
  assert [row['expression'] for row in rows] == ['the red box', 'the "red" box,\nor so']
  assert [float(row['iou_release']) for row in rows] == [0.5, 0]
  assert [(row['intersection_standard'], row['union_standard']) for row in rows] == [('10', '20'), ('0', '20')]


@pytest.fixture(scope='module')
def split(tmp_path_factory):
  scenes = {'image_size': 64, 'train': 1, 'val': 1, 'test': 12}
  return datasets.open_split('shapes', tmp_path_factory.mktemp('data'), 'test', scenes=scenes)


def perfect(batch):
  return batch['mask'] * 2.0 - 1.0


@pytest.fixture(scope='module')
def tokenizer():
  return Tokenizer(datasets.vocabulary('shapes'), 12)


def test_a_perfect_model_scores_100_on_a_split(split, tokenizer):
  config = small_config(image_size=64, max_text_tokens=8)
  results = evaluate_split(perfect, split, tokenizer, config, batch_size=16, progress=False)
  asked = [(split[i].object_id, expression) for i in range(len(split)) for expression in split[i].expressions]
  assert [(sample.object_id, sample.expression) for sample in results.samples] == asked
  assert results.kinds and all(results.metrics(kind=kind)['P@0.95'] == 100 for kind in results.kinds)
  chance = results.to_json()['chance']
  assert 0 < chance['random object'] < chance['colours only'] < 100
  fewer = evaluate_split(perfect, split, tokenizer, config, batch_size=16, limit=20, progress=False)
  assert len(fewer.samples) == 20


def test_half_the_resolution_only_affects_outlines(split, tokenizer):
  config = small_config(image_size=32, max_text_tokens=8)
  results = evaluate_split(perfect, split, tokenizer, config, batch_size=16, limit=60, progress=False)
  assert 60 < results.metrics('release')['mIoU'] < results.metrics('standard')['mIoU'] < 99


def test_pictures_show_the_requested_samples(split, tokenizer):
  config = small_config(image_size=64, max_text_tokens=8)
  results = evaluate_split(perfect, split, tokenizer, config, batch_size=16, limit=30, progress=False)
  chosen = [results.samples[place] for place in (29, 3, 17)]
  pictures = pictures_of(
    perfect, split, tokenizer, config, results, [sample.position for sample in chosen], batch_size=16
  )
  for sample in chosen:
    picture = pictures[sample.position]
    assert picture.expression == sample.expression and picture.iou == 1
    assert picture.truth.sum() == sample.target_pixels and (picture.truth == picture.prediction).all()
  assert len(pictures) == 3
