"""All kinds of prompts, alone and combined, for one image and many: every way of asking gives the same results."""

import dataclasses

import numpy as np
import pytest

import ditsam_jax
from ditsam_jax import Prediction, Prompt, Segmenter, UserError
from ditsam_jax.geometry.masks import decode_rle
from ditsam_jax.inference import programs
from ditsam_jax.models.config import sam
from tests.inference.predictor_cases import picture
from tests.small_models import random_model, small_config

BOX, POINTS, LABELS = [5, 6, 30, 40], [[10, 20], [50, 3]], [1, 0]


@pytest.fixture(scope='module', params=['layer_wise', 'none'])
def segmenter(request, tokenizer):
  decoder = dataclasses.replace(small_config().mask_decoder, depth=1)
  model = random_model(small_config(fusion=request.param, mask_decoder=decoder))
  return Segmenter.from_model(model, tokenizer, batch_size=4)


def same(a: Prediction, b: Prediction) -> bool:
  """Whether two predictions are equal up to rounding, which depends on the batch size."""
  scale = np.abs(b.logits).max()
  return a.logits.shape == b.logits.shape and np.abs(a.logits - b.logits).max() <= 1e-4 * scale


@pytest.mark.slow
def test_all_kinds_of_prompts_combine(segmenter):
  image = picture((50, 60))
  first = segmenter(image, 'the red circle')
  mask = first.low_res_logits[0]
  both = segmenter(image, 'the red circle', box=BOX, mask=mask, points=POINTS, labels=LABELS, multimask=True)
  assert both.masks.shape == (3, 50, 60) and both.scores.shape == (3,) and both.low_res_logits.shape == (3, 16, 16)
  predictor = ditsam_jax.SamPredictor.from_model(random_model(segmenter.config), segmenter.tokenizer)
  predictor.set_image(image)
  masks, scores, _ = predictor.predict(
    np.array(POINTS), np.array(LABELS), np.array(BOX), mask[None], True, text='the red circle'
  )
  np.testing.assert_array_equal(both.masks, masks)
  np.testing.assert_array_equal(both.scores, scores)
  # Each part affects the result.
  for name in ('box', 'mask', 'points'):
    prompt = dict(box=BOX, mask=mask, points=POINTS, labels=LABELS) | {name: None}
    if name == 'points':
      prompt['labels'] = None
    assert not same(segmenter(image, 'the red circle', **prompt, multimask=True), both)
  assert not same(segmenter(image, box=BOX, mask=mask, points=POINTS, labels=LABELS, multimask=True), both)


def test_points_without_labels_are_positive(segmenter):
  image = picture((50, 60))
  assert same(segmenter(image, points=POINTS), segmenter(image, points=POINTS, labels=[1, 1]))
  assert not same(segmenter(image, points=POINTS), segmenter(image, points=POINTS, labels=[1, 0]))


@pytest.mark.slow
def test_lists_views_and_streams_give_the_same_results(segmenter):
  images = [picture((50, 60), seed) for seed in range(3)]
  prompts = [
    Prompt('the red circle'),
    Prompt(box=BOX),
    Prompt('small square', points=POINTS, labels=LABELS),
    Prompt(points=POINTS[:1], multimask=True),
    Prompt('the blue square'),
  ]
  alone = [[segmenter(image, prompt) for prompt in prompts] for image in images]
  for image, expected in zip(images, alone):
    for found in (segmenter(image, prompts), segmenter([image], prompts), segmenter.look(image)(prompts)):
      assert len(found) == 5 and all(map(same, found, expected))
    view = segmenter.look(image)
    assert all(same(view(prompt), one) for prompt, one in zip(prompts, expected))
  pairs = [(image, prompt) for image in images for prompt in prompts]
  streamed = list(segmenter.stream(iter(pairs)))
  assert all(map(same, streamed, sum(alone, [])))
  assert [found.prompt.text for found in streamed] == [prompt.text for _, prompt in pairs]
  # Results are bit-identical wherever a job is resumed.
  again = list(segmenter.stream(pairs[7:]))
  assert all((a.logits == b.logits).all() for a, b in zip(again, streamed[7:], strict=True))
  found = segmenter(images, [prompts[0], prompts[1], prompts[0]])
  assert all(map(same, found, [alone[0][0], alone[1][1], alone[2][0]]))
  with_box = segmenter(images[0], ['the red circle', 'small square'], box=BOX)
  assert same(with_box[1], segmenter(images[0], 'small square', box=BOX)) and len(with_box) == 2


def test_shared_work_is_done_once(segmenter, monkeypatch):
  calls = {'read': [], 'encode': []}
  for name, program in (('read', programs.read), ('encode', programs.encode)):
    monkeypatch.setattr(
      programs, name, lambda *inputs, n=name, p=program: calls[n].append(len(inputs[2])) or p(*inputs)
    )
  fused = segmenter.config.fusion != 'none'
  view = segmenter.look(picture((40, 40), seed=9))
  view(box=BOX), view(points=POINTS), view([Prompt(box=BOX)] * 9)
  assert calls == {'read': [], 'encode': [1]}
  view('large circle'), view('large circle', box=BOX), view('large circle', points=POINTS)
  assert calls == {'read': [1], 'encode': [1, 1] if fused else [1]}
  calls['read'].clear(), calls['encode'].clear()
  image = picture((40, 40), seed=10)
  list(segmenter.stream([(image, text) for text in ('large square', 'large blue square') * 2]))
  assert calls == {'read': [4], 'encode': [4] if fused else [2]}  # padded to the batch size


@pytest.mark.slow
def test_a_plain_sam_accepts_everything_but_text():
  model = random_model(sam(small_config()))
  segmenter, image = Segmenter.from_model(model), picture((30, 70))
  found = segmenter(image, points=POINTS, labels=LABELS, box=BOX)
  assert found.masks.shape == (1, 30, 70) and found.text is None
  many = segmenter(image, [Prompt(box=BOX), Prompt(points=POINTS)])
  assert same(many[0], segmenter(image, box=BOX)) and same(many[1], segmenter(image, points=POINTS))
  with pytest.raises(UserError, match='no text encoder'):
    segmenter(image, [Prompt(box=BOX), 'the red circle'])


def test_attributes_of_a_prediction(segmenter):
  found = segmenter(picture((50, 60)), 'the red circle', points=POINTS, labels=LABELS, multimask=True)
  best = found.scores.argmax()
  assert (found.mask == found.masks[best]).all() and found.score == found.iou == found.scores[best]
  assert found.areas == [int(mask.sum()) for mask in found.masks] and found.area == found.areas[best]
  for mask, rle, box in zip(found.masks, found.rles(), found.boxes):
    assert rle['size'] == [50, 60] and (decode_rle(rle) == mask).all()
    if box is not None:
      x0, y0, x1, y1 = box
      assert mask[y0:y1, x0:x1].sum() == mask.sum() and mask[y0].any() and mask[:, x1 - 1].any()
  assert found.rle() == found.rles()[best] and isinstance(found.rle()['counts'], str)
  assert found.overlay().size == (60, 50)
  text = repr(found)
  assert "'the red circle'" in text and '60 x 50' in text and f'score {found.score:.2f}' in text
  assert '\n' not in text and len(text) < 300
  empty = dataclasses.replace(found, masks=np.zeros_like(found.masks))
  assert empty.box is None and empty.area == 0 and 'nothing found' in repr(empty)


@pytest.mark.parametrize('segmenter', ['layer_wise'], indirect=True)
def test_a_prompt_with_separate_arguments_is_refused(segmenter):
  with pytest.raises(UserError, match='a Prompt with box as separate arguments'):
    segmenter(picture((9, 9)), Prompt('the red circle'), box=BOX)


@pytest.mark.slow
@pytest.mark.parametrize('segmenter', ['layer_wise'], indirect=True)
def test_compute_types(segmenter, tokenizer, tmp_path):
  model = random_model(segmenter.config)
  assert Segmenter.from_model(model, tokenizer).dtype == 'float32'  # on a CPU
  image = picture((64, 64))
  narrow = Segmenter.from_model(model, tokenizer, dtype='bfloat16')
  found, expected = narrow(image, 'the red circle'), Segmenter.from_model(model, tokenizer)(image, 'the red circle')
  assert narrow.dtype == 'bfloat16' and found.logits.dtype == np.float32
  difference = np.abs(found.logits - expected.logits).max() / np.abs(expected.logits).max()
  assert 1e-4 < difference < 0.1
  folder = ditsam_jax.save(tmp_path / 'model', model, vocabulary=tokenizer.vocabulary_file)
  rounded = ditsam_jax.load(folder, dtype='bfloat16')
  assert rounded.image_encoder.pos_embed.dtype == 'bfloat16'
  assert rounded.prompt_encoder.pe_layer.gaussian_matrix.dtype == 'float32'  # positions are never rounded
  for way in (Segmenter.from_model(rounded, tokenizer), Segmenter(folder, dtype='bfloat16')):
    np.testing.assert_array_equal(way(image, 'the red circle').logits, found.logits)
  assert ditsam_jax.SamPredictor(folder, dtype='bfloat16').dtype == 'bfloat16'
  for call in (ditsam_jax.load, Segmenter, ditsam_jax.SamPredictor):
    with pytest.raises(UserError, match="dtype 'float12': expected one of auto, float32, bfloat16"):
      call(folder, dtype='float12')


def test_all_public_names_exist():
  for name in ditsam_jax.__all__:
    assert getattr(ditsam_jax, name) is not None
