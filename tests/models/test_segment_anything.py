"""Plain SAM agrees with Meta's segment-anything, also in windows and visual prompts (tests/golden/make_fixtures.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ditsam_jax.models.config import DitSamConfig, ImageEncoderConfig, MaskDecoderConfig
from ditsam_jax.models.weights import weights_of
from tests.small_models import call, golden_arrays, load_release, random_model

IMAGE = 80  # a grid of 5 x 5; windows of 3 need padding
CONFIG = DitSamConfig(
  ImageEncoderConfig(
    width=24, depth=3, heads=2, global_blocks=(1,), pretrain_grid=5, pretrain_window=3, attention_scope='windowed'
  ),
  MaskDecoderConfig(width=32, heads=4, mlp_width=48, iou_hidden=40),
  None,
  fusion='none',
  image_size=IMAGE,
)


@pytest.fixture(scope='module')
def sam():
  return golden_arrays('sam')


@pytest.fixture(scope='module')
def model(sam):
  model = random_model(CONFIG)
  tensors = {
    name.removeprefix('weights/').replace('image_encoder.', 'visual_encoder.'): value
    for name, value in sam.items()
    if name.startswith('weights/')
  }
  assert not load_release(model, tensors)
  model.eval()
  return model


def prompts(sam, case):
  """Converts the prompts of a fixture case to our arguments."""
  parts = ('points', 'boxes', 'masks') if case == 'all' else (case,)
  arguments = {part: sam[part] for part in parts}
  if 'points' in arguments:
    arguments['point_labels'] = sam['labels']
  if 'masks' in arguments:
    arguments['masks'] = sam['masks'][:, 0]
  return arguments


@pytest.mark.slow
@pytest.mark.verifies(
  "Plain SAM: the windowed encoder's image embedding", against="Meta's segment_anything", within='2e-5'
)
def test_windowed_image_embedding(model, sam):
  embedding = call(model.image_encoder, np.moveaxis(sam['image'], 1, -1))
  np.testing.assert_allclose(np.moveaxis(embedding, -1, 1), sam['embedding'], atol=2e-5)


@pytest.mark.verifies(
  'Plain SAM: positional encoding, prompt tokens and dense embeddings', against="Meta's segment_anything", within='1e-5'
)
def test_dense_positional_encoding(model, sam):
  np.testing.assert_allclose(
    np.moveaxis(model.prompt_encoder.pe_layer.grid(5, 5), -1, 0), sam['dense_pe'][0], atol=1e-5
  )


@pytest.mark.verifies(
  'Plain SAM: positional encoding, prompt tokens and dense embeddings', against="Meta's segment_anything", within='1e-5'
)
@pytest.mark.parametrize('case', ['points', 'boxes', 'masks', 'all'])
def test_prompt_tokens(model, sam, case):
  given = prompts(sam, case)
  tokens = model.prompt_encoder.sparse(
    given.get('points'), given.get('point_labels'), given.get('boxes'), (IMAGE, IMAGE)
  )
  expected = sam[f'{case}/sparse']
  assert sum(part.shape[1] for part in tokens) == expected.shape[1]
  if tokens:
    np.testing.assert_allclose(np.concatenate(tokens, axis=1), expected, atol=1e-5)
  dense = model.prompt_encoder.dense(given.get('masks'), 2, (5, 5))
  np.testing.assert_allclose(np.moveaxis(dense, -1, 1), np.broadcast_to(sam[f'{case}/dense'], (2, 32, 5, 5)), atol=1e-5)


@pytest.mark.slow
@pytest.mark.verifies(
  'Plain SAM: masks and predicted IoU of points, boxes, masks and all together, one mask or three',
  against="Meta's segment_anything",
  within='2e-5 in float64, 2e-4 in f32',
)
@pytest.mark.parametrize(
  'case, multimask',
  [('points', False), ('boxes', True), ('masks', False), ('masks', True), ('all', False), ('all', True)],
)
@pytest.mark.parametrize('dtype, within', [('float32', 2e-4), ('float64', 2e-5)])
def test_masks_and_predicted_iou(model, sam, case, multimask, dtype, within):
  """One pixel of the mask prompts amplifies rounding, to 5e-5 .. 1.3e-4 in f32 and 6e-6 in float64."""
  with jax.enable_x64(dtype == 'float64'):
    check_masks_and_predicted_iou(as_type(model, dtype), sam, case, multimask, within)


def as_type(model, dtype):
  """A copy of the model with another compute type."""
  copy = nnx.merge(*nnx.split(model))
  for variable in weights_of(copy).values():
    variable.set_value(jnp.asarray(variable[...], dtype))
  return copy


def check_masks_and_predicted_iou(model, sam, case, multimask, within):
  images = jnp.asarray(np.moveaxis(sam['image'], 1, -1), model.image_encoder.pos_embed.dtype)
  out = call(model, images, **prompts(sam, case), multimask=multimask)
  kind = 'multi' if multimask else 'single'
  logits, iou = sam[f'{case}/{kind}/logits'], sam[f'{case}/{kind}/iou']
  if not multimask:
    logits, iou = logits[:, 0], iou[:, 0]
  np.testing.assert_allclose(out.low_res_logits, logits, atol=within)
  np.testing.assert_allclose(out.iou, iou, atol=within)
  assert out.logits.shape == (*logits.shape[:-2], IMAGE, IMAGE)


def test_a_box_equals_its_two_corner_points(model, sam):
  corners = sam['boxes'].reshape(2, 2, 2)
  labels = np.asarray([[2, 3], [2, 3]])
  as_points = model.prompt_encoder.embed_points(jnp.asarray(corners), labels, (IMAGE, IMAGE))
  np.testing.assert_array_equal(as_points, model.prompt_encoder.embed_boxes(jnp.asarray(sam['boxes']), (IMAGE, IMAGE)))
