"""Automatic mask generation matches Meta's generator, and new images don't recompile."""

import inspect

import jax
import numpy as np
import pytest
from PIL import Image

import ditsam_jax
from ditsam_jax.data.datasets import scenes_config
from ditsam_jax.data.shapes.builder import described_scene
from ditsam_jax.errors import UserError
from ditsam_jax.geometry.masks import decode_rle
from ditsam_jax.inference.mask_candidates import Candidates, Stopped
from ditsam_jax.inference.mask_crops import crops_of
from ditsam_jax.inference.mask_settings import MaskSettings
from ditsam_jax.inference.phrase_instances import Named
from ditsam_jax.models.config import ImageEncoderConfig, MaskDecoderConfig, sam, tiny
from ditsam_jax.models.weights import weights_of
from ditsam_jax.storage import saved_model
from ditsam_jax.storage.building import build_model
from ditsam_jax.storage.description import read_config
from tests.meta_sam import meta_package, meta_sam
from tests.small_models import random_model

# Masks of random weights cover the whole image, so suppression of duplicates is off.
RANDOM = dict(
  points_per_side=5,
  points_per_batch=16,
  pred_iou_thresh=0.06,
  stability_score_thresh=0.17,
  stability_score_offset=0.05,
  box_nms_thresh=1.0,
  crop_nms_thresh=1.0,
)
# For the shipped SAM; each is changed once below.
BASE = dict(points_per_side=6, points_per_batch=16, pred_iou_thresh=0.7, stability_score_thresh=0.8)


def windowed_config():
  """Returns a SAM of 96 x 96 pixels with windows of 4 tokens, which do not divide its 6."""
  config = tiny(
    image_encoder=ImageEncoderConfig(
      width=32, depth=2, heads=2, global_blocks=(1,), pretrain_grid=6, pretrain_window=4
    ),
    mask_decoder=MaskDecoderConfig(width=32, heads=2, mlp_width=32, iou_hidden=16),
    text_encoder=None,
    fusion='none',
  )
  return sam(config)


@pytest.fixture(scope='module')
def package():
  with meta_package() as package:
    yield package


@pytest.fixture(scope='module')
def windowed(package):
  model = random_model(windowed_config(), seed=4)
  weights = {name: np.asarray(variable[...]) for name, variable in weights_of(model).items()}
  return model, meta_sam(package, model.config, weights)


@pytest.fixture(scope='module')
def shipped(package):
  config, weights = read_config('sam_shapes_multimask'), saved_model.read_weights('sam_shapes_multimask')
  return build_model(config, weights, 'sam_shapes_multimask'), meta_sam(package, config, weights)


def image_of(width, height, number=0):
  scene, _ = described_scene(scenes_config({}), 'test', number)
  return np.asarray(Image.fromarray(scene.image).resize((width, height), Image.Resampling.BICUBIC))


def iou(one, other):
  union = np.count_nonzero(one | other)
  return np.count_nonzero(one & other) / union if union else 1.0


def missing(found, others, settings):
  """Returns records without a counterpart among the others, except those with a score at a threshold."""
  at_edge = lambda record: any(
    abs(record[score] - settings.get(name, default)) < 1e-4
    for score, name, default in (
      ('predicted_iou', 'pred_iou_thresh', 0.88),
      ('stability_score', 'stability_score_thresh', 0.95),
    )
  )
  return [
    record
    for record in found
    if not at_edge(record)
    and not any(
      abs(record['predicted_iou'] - other['predicted_iou']) <= 1e-4
      and abs(record['stability_score'] - other['stability_score']) <= 1e-4
      and record['crop_box'] == other['crop_box']
      and np.abs(np.subtract(record['bbox'], other['bbox'])).max() <= 1
      and np.allclose(record['point_coords'], other['point_coords'])
      and iou(record['segmentation'], other['segmentation']) >= 0.99
      for other in others
    )
  ]


def compare(package, pair, image, least=1, **settings):
  """Compares both generators on an image; returns our records."""
  ours = ditsam_jax.SamAutomaticMaskGenerator(pair[0], **settings).generate(image)
  theirs = package.SamAutomaticMaskGenerator(pair[1], **settings).generate(image)
  assert len(ours) == len(theirs) >= least
  assert not missing(theirs, ours, settings) and not missing(ours, theirs, settings)
  for mine, other in zip(ours, theirs):
    assert list(mine) == list(other)
    assert [type(value) for value in mine.values()] == [type(value) for value in other.values()]
  return ours


@pytest.mark.slow
@pytest.mark.verifies(
  'Automatic mask generation: a windowed SAM with random weights, image sizes and crops',
  against="Meta's SamAutomaticMaskGenerator",
  within='masks 0.99 IoU, scores 1e-4',
)
@pytest.mark.parametrize('size', [(96, 96), (150, 100), (40, 130), (300, 211)])
@pytest.mark.parametrize('crops', [0, 1])
def test_random_windowed_sam_finds_the_same_masks(package, windowed, size, crops):
  compare(package, windowed, image_of(*size), least=3, **RANDOM, crop_n_layers=crops)


MOVED = [
  dict(points_per_side=3),
  dict(points_per_batch=3),
  dict(pred_iou_thresh=0.3),
  dict(pred_iou_thresh=0),
  dict(stability_score_thresh=0.8),
  dict(stability_score_thresh=0, stability_score_offset=1.0),
  dict(stability_score_offset=0.2),
  dict(box_nms_thresh=0.5),
  dict(crop_n_layers=1, crop_nms_thresh=0.3),
  dict(crop_n_layers=1, crop_overlap_ratio=0.1),
  dict(crop_n_layers=1, crop_n_points_downscale_factor=2),
  dict(points_per_side=4, crop_n_layers=2, crop_n_points_downscale_factor=2),
  dict(points_per_side=None, point_grids=[np.array([[0.2, 0.3], [0.7, 0.9], [0.5, 0.5]])]),
  dict(min_mask_region_area=60),
]


@pytest.mark.slow
@pytest.mark.verifies(
  'Automatic mask generation: the shipped SAM, exported to PyTorch; every parameter moved once',
  against="Meta's SamAutomaticMaskGenerator",
  within='masks 0.99 IoU, scores 1e-4',
)
@pytest.mark.parametrize('moved', MOVED, ids=lambda moved: '-'.join(moved))
def test_each_parameter_has_the_same_effect_as_metas(package, shipped, moved):
  compare(package, shipped, image_of(150, 110), **BASE | moved)


@pytest.mark.parametrize('mode', ['uncompressed_rle', 'coco_rle'])
def test_run_lengths_equal_metas(package, windowed, mode):
  image = image_of(70, 90)
  settings = RANDOM | dict(output_mode=mode)
  ours = ditsam_jax.SamAutomaticMaskGenerator(windowed[0], **settings).generate(image)
  theirs = package.SamAutomaticMaskGenerator(windowed[1], **settings).generate(image)
  assert len(ours) == len(theirs) > 1
  for mine, other in zip(ours, theirs):
    assert mine['segmentation'].keys() == other['segmentation'].keys()
    assert type(mine['segmentation']['counts']) is type(other['segmentation']['counts'])
    masks = [decode_rle(record['segmentation']) for record in (mine, other)]
    assert iou(*masks) >= 0.99 and mine['area'] == masks[0].sum()


def test_arguments_and_defaults_equal_metas(package):
  theirs = inspect.signature(package.SamAutomaticMaskGenerator).parameters
  ours = inspect.signature(ditsam_jax.SamAutomaticMaskGenerator).parameters
  assert list(ours)[: len(theirs)] == list(theirs)
  assert all(ours[name].default == parameter.default for name, parameter in theirs.items())
  assert all(ours[name].kind is inspect.Parameter.KEYWORD_ONLY for name in list(ours)[len(theirs) :])


def test_new_images_do_not_recompile(windowed, compilations):
  generator = ditsam_jax.SamAutomaticMaskGenerator(windowed[0], **RANDOM, crop_n_layers=1)
  generator.generate(image_of(100, 80))
  before = len(compilations)
  for width, height in ((96, 96), (31, 200), (410, 233)):
    generator.generate(image_of(width, height))
  other = RANDOM | dict(points_per_side=3, pred_iou_thresh=0.07, stability_score_thresh=0.2, stability_score_offset=0.1)
  ditsam_jax.SamAutomaticMaskGenerator(windowed[0], **other).generate(image_of(55, 77))
  assert len(compilations) == before


@pytest.fixture
def compilations():
  """Returns a list that grows by one with every program that XLA compiles."""
  events = []

  def note(event, duration, **details):
    if event == '/jax/core/compile/backend_compile_duration':
      events.append(duration)

  jax.monitoring.register_event_duration_secs_listener(note)
  jax.jit(lambda x: x * 3.21 + 1)(2.0)
  assert len(events) == 1  # otherwise, counting would always pass
  yield events
  jax.monitoring.unregister_event_duration_listener(note)


def test_a_stream_returns_the_results_of_single_images(windowed):
  generator = ditsam_jax.SamAutomaticMaskGenerator(windowed[0], **RANDOM)
  images = [image_of(100, 80, number) for number in range(5)]
  together = list(generator.stream((image, None) for image in images))
  assert len(together) == 5
  for records, image in zip(together, images):
    alone = generator.generate(image)
    assert [record['bbox'] for record in records] == [record['bbox'] for record in alone]
    assert all((one['segmentation'] == other['segmentation']).all() for one, other in zip(records, alone))


def test_an_unreadable_image_does_not_lose_earlier_results(windowed, tmp_path):
  generator = ditsam_jax.SamAutomaticMaskGenerator(windowed[0], **RANDOM)
  images = image_of(50, 50), image_of(60, 60), tmp_path / 'missing.png', image_of(70, 70)
  found = generator.stream((image, None) for image in images)
  assert len([next(found), next(found)]) == 2
  with pytest.raises(UserError, match=r'missing\.png'):
    next(found)


def test_generating_stops_before_the_next_batch_when_it_is_not_wanted(windowed):
  generator = ditsam_jax.SamAutomaticMaskGenerator(windowed[0], points_per_side=8, output_mode='coco_rle')
  answers = iter([True, True, False])
  with pytest.raises(Stopped):
    generator.generate(image_of(64, 64), wanted=lambda: next(answers))
  assert next(answers, None) is None
  assert generator.generate(image_of(64, 64)) == generator.generate(image_of(64, 64), wanted=lambda: True)


def test_an_image_without_masks_returns_an_empty_list(windowed):
  settings = RANDOM | dict(pred_iou_thresh=1e6, crop_n_layers=1, min_mask_region_area=10)
  assert ditsam_jax.SamAutomaticMaskGenerator(windowed[0], **settings).generate(image_of(50, 50)) == []


@pytest.mark.parametrize(
  'settings, message',
  [
    (dict(points_per_side=None), 'points_per_side None with point_grids None: expected one of the two'),
    (dict(point_grids=[[[0.5, 0.5]]]), 'points_per_side 32 with point_grids given: expected one of the two'),
    (dict(points_per_side=None, point_grids=[[0.5, 0.5]]), r'an array of shape \(2,\)'),
    (dict(points_per_side=None, point_grids=np.full((1, 4, 3), 0.5)), r'an array of shape \(4, 3\)'),
    (dict(points_per_side=None, point_grids=[[[0.5, 1.5]]]), r'a coordinate outside 0\.\.1'),
    (dict(points_per_side=None, point_grids=[[[0.5, 0.5]]], crop_n_layers=1), '1 point_grids with 1 crop layers'),
    (dict(points_per_side=0), 'points_per_side 0: expected a whole number from 1'),
    (dict(points_per_side=3, crop_n_layers=2, crop_n_points_downscale_factor=2), 'no points are left'),
    (dict(points_per_batch=1.5), 'points_per_batch 1.5: expected a whole number'),
    (dict(pred_iou_thresh='high'), "pred_iou_thresh 'high': expected a number"),
    (dict(box_nms_thresh=-0.1), 'box_nms_thresh -0.1: expected a number of at least 0'),
    (dict(crop_overlap_ratio=2), 'crop_overlap_ratio 2: expected 0 to 1'),
    (dict(output_mode='rle'), "output_mode 'rle': expected one of binary_mask, uncompressed_rle, coco_rle"),
  ],
)
def test_invalid_arguments_are_refused(settings, message):
  with pytest.raises(UserError, match=message):
    ditsam_jax.SamAutomaticMaskGenerator('sam_shapes', **settings)


@pytest.mark.slow
def test_points_in_a_sentences_mask_find_the_masks_that_it_covers(shipped):
  settings = MaskSettings(**BASE, crop_n_layers=1)
  candidates = Candidates(ditsam_jax.Segmenter.from_model(shipped[0]), settings)
  crops = crops_of(image_of(150, 110), settings, settings.grids(), shipped[0].config)
  mask = np.broadcast_to(np.arange(150) // 25 % 2 == 0, (110, 150))  # three stripes

  def drawn(named):
    for crop, mine in zip(crops, candidates.find(crops, named)):
      for candidate, own in zip(mine, candidates.draw(crop, mine)):
        x0, y0, x1, y1 = crop.box
        x, y = candidate.point + crop.box[:2]
        share = (own & mask[y0:y1, x0:x1]).sum() / own.sum()
        yield (*crop.box, float(x), float(y), round(candidate.score, 4)), mask[int(y), int(x)] and share >= 0.6

  everything, some = dict(drawn(None)), dict(drawn(Named(mask, 0.9, 0.9, 1.0)))
  assert all(some.values())
  expected = {key for key, wanted in everything.items() if wanted}
  middle = some.keys() - everything.keys()  # of the stripes
  assert some.keys() - middle == expected and len({key[4:6] for key in middle}) <= 3
  in_mask = {key for key in everything if mask[int(key[5]), int(key[4])]}
  assert 3 < len(expected) < len(in_mask) < len(everything)


@pytest.fixture(scope='module')
def reader():
  """Returns settings of a generator whose phrases are read by another model."""
  settings = dict(points_per_side=8, pred_iou_thresh=0.75, stability_score_thresh=0.85)
  return settings | dict(text_model=ditsam_jax.Segmenter('shapes'))


@pytest.mark.slow
def test_new_phrases_and_images_do_not_recompile(reader, compilations):
  generator = ditsam_jax.SamAutomaticMaskGenerator('sam_shapes_multimask', **reader)
  assert len(generator.generate(image_of(128, 128, 0), 'the shapes')) > 3
  before = len(compilations)
  for number, (size, text) in enumerate([((96, 96), 'the red circles'), ((300, 211), 'the shapes'), ((31, 90), None)]):
    generator.generate(image_of(*size, number), text)
  assert generator.generate(np.zeros((70, 80, 3), np.uint8), 'the red circles') == []
  assert len(compilations) == before


@pytest.mark.slow
def test_a_stream_with_phrases_returns_the_results_of_single_images(reader, tmp_path):
  generator = ditsam_jax.SamAutomaticMaskGenerator('sam_shapes_multimask', **reader, crop_n_layers=1)
  images = [image_of(128, 128, number) for number in range(2)]
  asked = [(images[0], 'the shapes'), (images[0], None), (images[0], 'the red crosses'), (images[1], 'the shapes')]
  together = generator.stream([*asked, (tmp_path / 'missing.png', 'the shapes')])
  for (image, text), records in zip(asked, together):
    alone = generator.generate(image, text)
    assert len(records) == len(alone) > 0
    assert all((one['segmentation'] == other['segmentation']).all() for one, other in zip(records, alone))
  with pytest.raises(UserError, match=r'missing\.png'):
    next(together)


def test_the_model_that_reads_phrases_needs_a_text_encoder(windowed):
  with pytest.raises(UserError, match="text_model 'sam_shapes': this model has no text encoder"):
    ditsam_jax.SamAutomaticMaskGenerator(windowed[0], text_model='sam_shapes')
  with pytest.raises(UserError, match="text_model 'sam_shapes_multimask': this model has no text encoder"):
    ditsam_jax.SamAutomaticMaskGenerator('sam_shapes_multimask', text_model='sam_shapes_multimask')


def test_a_model_trained_with_sentences_only_does_not_find_objects(windowed, tmp_path):
  for task in ('text', 'interactive'):
    saved_model.save(tmp_path / task, windowed[0], notes={'task': task})
  ditsam_jax.SamAutomaticMaskGenerator(tmp_path / 'interactive')
  with pytest.raises(UserError, match='text was trained with sentences only .* pass this one as text_model'):
    ditsam_jax.SamAutomaticMaskGenerator(tmp_path / 'text')
  with pytest.raises(UserError, match='text was trained with sentences only'):
    ditsam_jax.SamAutomaticMaskGenerator(ditsam_jax.Segmenter(tmp_path / 'text'))


def test_text_requires_a_text_encoder(windowed):
  with pytest.raises(UserError, match="'the red circles': this model has no text encoder"):
    ditsam_jax.SamAutomaticMaskGenerator(windowed[0]).generate(image_of(50, 50), text='the red circles')
