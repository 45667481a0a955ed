"""SamPredictor encodes an image once, follows clicks and boxes, and agrees with Segmenter on sentences."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from ditsam_jax import SamPredictor
from ditsam_jax.data.datasets import scenes_config
from ditsam_jax.data.shapes.builder import described_scene
from ditsam_jax.errors import UserError
from ditsam_jax.geometry.letterbox import letterbox
from ditsam_jax.inference.segmenter import Segmenter
from ditsam_jax.models.config import IMAGENET_MEAN, IMAGENET_STD
from ditsam_jax.models.ditsam import DitSam
from ditsam_jax.models.image_encoder import ImageEncoder
from ditsam_jax.storage import saved_model
from tests.inference.predictor_cases import PROMPTS, ask, in_pixels, picture, relative_error
from tests.small_models import SAM, random_model, small_config

pytestmark = pytest.mark.usefixtures('quick_compilation')


class CountingDecoder(DitSam):
  """Records the number of sparse tokens of each decoder trace."""

  traces = []

  def decode(self, embedding, sparse, *args, **kwargs):
    self.traces.append(sum(tokens.shape[1] for tokens in sparse))
    return super().decode(embedding, sparse, *args, **kwargs)


class CountingEncoder(ImageEncoder):
  """Counts its runs, compiled or not."""

  runs = []

  def __call__(self, *args, **kwargs):
    jax.debug.callback(lambda: self.runs.append(1))
    return super().__call__(*args, **kwargs)


def encodings():
  """Number of images encoded since the last call."""
  jax.effects_barrier()
  count = len(CountingEncoder.runs)
  CountingEncoder.runs.clear()
  return count


def counting_model(config):
  model = random_model(config)
  model.eval()
  model.__class__, model.image_encoder.__class__ = CountingDecoder, CountingEncoder
  return model


@pytest.fixture(scope='module')
def plain():
  """A predictor without a text encoder."""
  return SamPredictor.from_model(counting_model(SAM))


@pytest.mark.slow
def test_masked_padding_changes_nothing():
  model = random_model(SAM, seed=1)
  rng = np.random.default_rng(0)
  grid, width, side = SAM.grid, SAM.mask_decoder.width, SAM.image_size
  embedding = jnp.asarray(rng.normal(size=(2, grid, grid, width)), jnp.float32)
  sparse, padding = (jnp.asarray(rng.normal(size=(2, count, width)), jnp.float32) for count in (3, 5))
  decode = jax.jit(lambda tokens, mask: model.decode(embedding, tokens, None, (side, side), sparse_mask=mask))
  exact = decode([sparse], None)
  masked = decode([sparse, 9 * padding], np.arange(8)[None].repeat(2, 0) < 3)
  unmasked = decode([sparse, 9 * padding], np.ones((2, 8), bool))
  for name in ('logits', 'low_res_logits', 'iou'):
    assert relative_error(getattr(masked, name), getattr(exact, name)) <= 1e-5
    assert relative_error(getattr(unmasked, name), getattr(exact, name)) > 1e-3


@pytest.mark.slow
def test_new_point_counts_rarely_recompile(plain):
  CountingDecoder.traces.clear()
  points, labels = np.random.default_rng(0).random((8, 2)) * 40, [1, 0, 1, 1, 0, 0, 1, 0]
  for size in ((40, 70), (90, 20)):
    plain.set_image(picture(size))
    ask(plain)
    for box in (None, [1, 2, 15, 20]):
      for count in range(1, 9):
        ask(plain, points=points[:count], labels=labels[:count], box=box)
  assert CountingDecoder.traces == [8, 16]


def test_an_image_is_encoded_once(plain):
  encodings()
  plain.set_image(picture((40, 70)))
  before = ask(plain, box=[5, 5, 30, 30])
  ask(plain, points=[[3, 4]], labels=[1])
  assert encodings() == 1
  plain.set_image(picture((70, 40), seed=1))
  other = ask(plain, box=[5, 5, 30, 30])
  assert encodings() == 1 and other.masks.shape == (1, 70, 40)
  assert relative_error(other.low_res_logits, before.low_res_logits) > 1e-2
  with pytest.raises(UserError, match='nowhere.png'):
    plain.set_image('nowhere.png')
  np.testing.assert_array_equal(ask(plain, box=[5, 5, 30, 30]).logits, other.logits)


@pytest.fixture(scope='module', params=['layer_wise', 'none'])
def reader(request, tokenizer):
  """A predictor with a text encoder, with and without text in the image encoder."""
  decoder = dataclasses.replace(small_config().mask_decoder, depth=1)
  model = counting_model(small_config(fusion=request.param, mask_decoder=decoder))
  return SamPredictor.from_model(model, tokenizer), model


@pytest.mark.slow
def test_sentences_give_the_same_as_segmenter(reader, tokenizer):
  predictor, segmenter = reader[0], Segmenter.from_model(reader[1], tokenizer)
  for size in ((64, 64), (33, 90), (70, 41), (20, 31)):
    predictor.set_image(picture(size))
    for text in ('the red circle', 'small blue square'):
      result, expected = ask(predictor, text=text), segmenter(picture(size), text)
      assert result.masks.shape == (1, *size)
      assert relative_error(result.logits, expected.logits) <= 1e-4
      assert abs(result.iou[0] - expected.iou) <= 1e-4 * abs(expected.iou)
      sure = np.abs(expected.logits - np.log(0.35 / 0.65)) > 1e-3 * np.abs(expected.logits).max()
      assert (result.masks == expected.masks)[sure].all()  # at the model's threshold


@pytest.mark.slow
def test_clicks_after_a_sentence_only_run_the_decoder(reader):
  predictor, model = reader
  again = 0 if model.config.fusion == 'none' else 1  # does the embedding depend on the text?
  encodings()
  predictor.set_image(picture((64, 50)))
  first = ask(predictor, text='the red circle')
  for x in (10, 20, 30):
    clicked = ask(predictor, text='the red circle', points=[[x, 20]], labels=[1])
  assert encodings() == 1 and relative_error(clicked.logits, first.logits) > 1e-3
  second = ask(predictor, text='the blue square')
  assert encodings() == again and relative_error(second.logits, first.logits) > 1e-3
  alone = ask(predictor, points=[[10, 20]], labels=[1])
  assert encodings() == again
  ask(predictor, text='the blue square')
  np.testing.assert_array_equal(ask(predictor, points=[[10, 20]], labels=[1]).logits, alone.logits)
  assert encodings() == 0
  np.testing.assert_array_equal(ask(predictor, text='the red circle').logits, first.logits)
  assert encodings() == 0  # the last sentences are cached


@pytest.mark.slow
@pytest.mark.parametrize('reader', ['layer_wise'], indirect=True)
def test_sentences_combine_with_points_and_boxes(reader, tokenizer):
  """The same as the full model, given prompts mapped to the square by hand."""
  predictor, model = reader
  size, text = (32, 96), 'the blue square'  # centred in 64 x 64: 21 rows from row 21
  prompt = in_pixels(PROMPTS['points with a box'], size)
  scale, corner = np.asarray([64 / 96, 21 / 32]), np.asarray([0, 21])
  image = picture(size)
  predictor.set_image(image)
  result = ask(predictor, **prompt, text=text)
  forward = nnx.jit(lambda model, images, ids, mask, prompts: model(images, ids, mask, **prompts))
  expected = forward(
    model,
    letterbox(image, 64, IMAGENET_MEAN, IMAGENET_STD)[0][None],
    *tokenizer([text]),
    dict(
      points=jnp.asarray(prompt['points'] * scale + corner, jnp.float32)[None],
      point_labels=prompt['labels'][None],
      boxes=jnp.asarray(prompt['box'] * np.tile(scale, 2) + np.tile(corner, 2), jnp.float32)[None],
    ),
  )
  assert relative_error(result.low_res_logits, np.asarray(expected.low_res_logits)) <= 1e-4
  assert relative_error(result.iou, np.asarray(expected.iou)) <= 1e-4


@pytest.mark.parametrize('reader', ['layer_wise'], indirect=True)
def test_loading_a_saved_model(reader, tokenizer, tmp_path):
  folder = saved_model.save(tmp_path / 'model', reader[1], vocabulary=tokenizer.vocabulary_file)
  predictor = SamPredictor(folder)
  assert predictor.config == reader[1].config
  np.testing.assert_array_equal(predictor.tokenizer(['the red circle']), tokenizer(['the red circle']))
  with pytest.raises(UserError, match='nowhere'):
    SamPredictor(tmp_path / 'nowhere')


@pytest.mark.slow
def test_the_shipped_sam_follows_boxes_and_clicks():
  predictor = SamPredictor('sam_shapes')
  ious = []
  for index in range(3):
    scene, _ = described_scene(scenes_config({}), 'test', index)
    predictor.set_image(Image.fromarray(scene.image).resize((200, 200)))
    for mask in scene.masks:
      mask = np.asarray(Image.fromarray(mask).resize((200, 200), Image.Resampling.NEAREST))
      y, x = np.nonzero(mask)
      middle = np.argmin((y - y.mean()) ** 2 + (x - x.mean()) ** 2)
      for prompt in (dict(box=[x.min(), y.min(), x.max(), y.max()]), dict(points=[[x[middle], y[middle]]], labels=[1])):
        found = ask(predictor, **prompt).masks[0]
        ious.append((found & mask).sum() / (found | mask).sum())
  assert np.mean(ious) >= 0.75
