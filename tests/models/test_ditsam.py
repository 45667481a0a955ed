"""The complete model: parameter counts, output shapes, prompts in combination, and refused inputs."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from ditsam_jax.models import config as models
from ditsam_jax.models.ditsam import abstract_model
from ditsam_jax.models.weights import weights_of
from tests.small_models import call, random_model, small_config

SIDE, TOKENS = 64, 6


@pytest.fixture(scope='module')
def model():
  model = random_model(small_config())
  model.eval()
  return model


@pytest.fixture(scope='module')
def batch():
  rng = np.random.default_rng(0)
  return dict(
    images=rng.normal(size=(2, SIDE, SIDE, 3)).astype(np.float32),
    token_ids=rng.integers(1, 20, (2, TOKENS)),
    token_mask=np.asarray([[1] * 6, [1] * 4 + [0] * 2]),
  )


PROMPTS = dict(points=np.asarray([[[10.0, 20.0]], [[30.0, 40.0]]], np.float32), point_labels=np.asarray([[1], [0]]))
BOXES = np.asarray([[4.0, 5.0, 30.0, 40.0], [0.0, 0.0, 63.0, 20.0]], np.float32)
MASKS = np.random.default_rng(1).normal(size=(2, SIDE // 4, SIDE // 4)).astype(np.float32)


@pytest.mark.verifies(
  'Numbers of parameters of ViT-B, ViT-L and ViT-H', against="Meta's segment_anything", within='equal'
)
@pytest.mark.parametrize(
  'preset, parameters', [(models.vit_b, 93_735_472), (models.vit_l, 312_342_832), (models.vit_h, 641_090_608)]
)
def test_plain_sam_has_metas_parameter_count(preset, parameters):
  model = abstract_model(models.sam(preset()))
  trained = [v for v in weights_of(model).values() if isinstance(v, nnx.Param)]
  assert sum(np.prod(v.shape) for v in trained) == parameters


def test_l_dit_adds_one_projection_per_block_bert_and_the_prompt_projection():
  count = lambda config: sum(np.prod(v.shape) for v in weights_of(abstract_model(config)).values())
  bert = 109_482_240 - 590_592  # bert-base-uncased without its pooler
  added = 12 * (768 * 768 + 768) + bert + 768 * 256 + 256
  assert count(models.vit_b()) - count(models.sam(models.vit_b())) == added


@pytest.mark.slow
def test_outputs_have_the_documented_shapes(model, batch):
  out = call(model, **batch)
  assert out.logits.shape == (2, SIDE, SIDE) and out.low_res_logits.shape == (2, SIDE // 4, SIDE // 4)
  assert out.iou.shape == (2,) and out.image_embedding.shape == (2, 4, 4, 16) and out.text_features.shape == (2, 6, 24)
  several = call(model, **batch, multimask=True)
  assert several.logits.shape == (2, 3, SIDE, SIDE) and several.iou.shape == (2, 3)


@pytest.mark.slow
def test_images_need_not_be_square(model, batch):
  out = call(model, **{**batch, 'images': batch['images'][:, :32]})
  assert out.logits.shape == (2, 32, SIDE) and np.isfinite(out.logits).all()


@pytest.mark.slow
@pytest.mark.parametrize(
  'visual', [PROMPTS, {'boxes': BOXES}, {'masks': MASKS}, {**PROMPTS, 'boxes': BOXES, 'masks': MASKS}]
)
def test_visual_prompts_work_with_and_without_text(model, batch, visual):
  both, text = call(model, **batch, **visual), call(model, **batch)
  alone = call(model, batch['images'], **visual)
  for one, other in ((both, text), (both, alone), (text, alone)):
    assert np.abs(one.low_res_logits - other.low_res_logits).max() > 1e-3
  assert alone.text_features is None


@pytest.mark.slow
def test_sparse_prompts_are_points_then_boxes_then_text(model, batch):
  """Compared with decoder inputs assembled by hand."""
  out = call(model, **batch, **PROMPTS, boxes=BOXES)

  @nnx.jit
  def by_hand(model):
    encoder = model.prompt_encoder
    sparse = [
      encoder.embed_points(PROMPTS['points'], PROMPTS['point_labels'], (SIDE, SIDE)),
      encoder.embed_boxes(BOXES, (SIDE, SIDE)),
      model.text_proj(out.text_features),
    ]
    return model.decode(out.image_embedding, sparse, None, (SIDE, SIDE))

  again = by_hand(model)
  np.testing.assert_allclose(again.logits, out.logits, atol=1e-5)


@pytest.mark.slow
def test_samples_of_a_batch_do_not_mix(model, batch):
  arguments = {**batch, **PROMPTS}
  out, alone = call(model, **arguments), call(model, **{name: x[1:] for name, x in arguments.items()})
  np.testing.assert_allclose(alone.logits[0], out.logits[1], atol=1e-4)


@pytest.mark.slow
def test_dropout_depends_only_on_the_given_key(batch):
  model = random_model(small_config())
  model.train()
  logits = nnx.jit(lambda model, seed: model(**batch, rngs=nnx.Rngs(dropout=jax.random.key(seed))).logits)
  one, same, other = logits(model, 0), logits(model, 0), logits(model, 1)
  np.testing.assert_array_equal(one, same)
  assert np.abs(one - other).max() > 1e-3
  model.eval()
  np.testing.assert_array_equal(logits(model, 0), logits(model, 1))


@pytest.mark.parametrize(
  'wrong, expected',
  [
    (dict(images=np.zeros((2, 60, 64, 3))), r'\(2, 60, 64, 3\).*multiples of 16'),
    (dict(images=np.zeros((2, 3, 64, 64))), r'\(2, 3, 64, 64\).*\[B, H, W, 3\]'),
    (dict(images=np.zeros((64, 64, 3))), r'\(64, 64, 3\)'),
    (dict(token_mask=None), 'token_ids and token_mask'),
    (dict(points=PROMPTS['points']), 'points and point_labels'),
    (dict(point_labels=PROMPTS['point_labels']), 'points and point_labels'),
    (dict(token_ids=np.ones((2, 9), int), token_mask=np.ones((2, 9), int)), '9 tokens.*8 positions'),
    (dict(token_mask=np.ones((2, 5), int)), r'token_mask is \(2, 5\).*T = 6'),
    (dict(token_ids=np.ones((1, 6), int)), r'token_ids is \(1, 6\).*B = 2'),
    (dict(token_ids=np.ones(6, int)), r'token_ids is \(6,\)'),
    (dict(PROMPTS, points=PROMPTS['points'][:, 0]), r'points is \(2, 2\).*\[B, P, 2\]'),
    (dict(PROMPTS, point_labels=np.ones((2, 3), int)), r'point_labels is \(2, 3\).*P = 1'),
    (dict(boxes=BOXES[:, :3]), r'boxes is \(2, 3\)'),
    (dict(boxes=BOXES[:1]), r'boxes is \(1, 4\).*B = 2'),
    (dict(masks=MASKS[:, :8]), r'masks is \(2, 8, 16\).*4h = 16'),
  ],
)
def test_inconsistent_prompts_are_named(model, batch, wrong, expected):
  with pytest.raises(ValueError, match=expected):
    model(**{**batch, **wrong})


@pytest.mark.parametrize('fusion', ['e2e_token', 'token_layer_wise'])
def test_learnt_tokens_are_not_broadcast_over_shorter_sentences(batch, fusion):
  model = random_model(small_config(fusion=fusion))
  one = {**batch, 'token_ids': batch['token_ids'][:, :1], 'token_mask': batch['token_mask'][:, :1]}
  with pytest.raises(ValueError, match=f"1 tokens per sentence; the fusion '{fusion}' has learnt 6"):
    model(**one)


def test_text_without_a_text_encoder_is_refused(batch):
  model = random_model(small_config(fusion='none'))
  plain = random_model(dataclasses.replace(model.config, text_encoder=None))
  with pytest.raises(ValueError, match='no text encoder'):
    plain(**batch)
