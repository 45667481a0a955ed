"""Running evaluation batches: no dropout, one compilation, and shared image embeddings if the fusion allows it."""

import numpy as np
import pytest

from ditsam_jax.evaluation.forward import forward_of
from ditsam_jax.inference import programs
from ditsam_jax.models.config import ImageEncoderConfig
from ditsam_jax.models.ditsam import DitSam
from ditsam_jax.models.image_encoder import ImageEncoder
from ditsam_jax.models.text_encoder import TextEncoder
from tests.small_models import call, random_model, small_config


def batch_for(config, size=2):
  rng = np.random.default_rng(3)
  ids = rng.integers(5, 20, (size, config.max_text_tokens)).astype(np.int32)
  image = rng.normal(0, 1, (size, config.image_size, config.image_size, 3)).astype(np.float32)
  return {'image': image, 'token_ids': ids, 'token_mask': np.ones_like(ids)}


@pytest.mark.slow
def test_no_dropout_and_one_compilation_for_all_weights(monkeypatch):
  encoder = ImageEncoderConfig(width=24, depth=1, heads=2, global_blocks=(0,), pretrain_grid=4)
  config = small_config(image_encoder=encoder, fusion_dropout=0.5)
  batch = batch_for(config)
  first, second = random_model(config, 0), random_model(config, 1)
  first.train(), second.train()
  traced = []
  for part, name in ((TextEncoder, '__call__'), (ImageEncoder, '__call__'), (DitSam, 'decode')):
    real = getattr(part, name)
    monkeypatch.setattr(
      part, name, lambda *args, real=real, part=part, **kwargs: traced.append(part) or real(*args, **kwargs)
    )
  forward_of(first)(batch)
  logits = forward_of(second)(batch)
  assert traced == [TextEncoder, ImageEncoder, DitSam]
  second.eval()
  expected = call(second, batch['image'], batch['token_ids'], batch['token_mask']).logits
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def rows_of(config, image_of_row, seed=0, images=None):
  """A batch whose row i refers to image `image_of_row[i]`."""
  rng = np.random.default_rng(seed)
  if images is None:
    images = rng.normal(0, 1, (10, config.image_size, config.image_size, 3)).astype(np.float32)
  ids = rng.integers(5, 20, (len(image_of_row), config.max_text_tokens)).astype(np.int32)
  return {
    'image': images[image_of_row],
    'image_index': np.array(image_of_row, np.int32),
    'token_ids': ids,
    'token_mask': np.ones_like(ids),
  }


@pytest.fixture(scope='module')
def baseline():
  """The text baseline with random weights, and its forward without sharing."""
  encoder = ImageEncoderConfig(width=24, depth=1, heads=2, global_blocks=(0,), pretrain_grid=4)
  model = random_model(small_config(fusion='none', image_encoder=encoder))
  return model, forward_of(model, share_images=False)


@pytest.mark.slow
def test_sharing_images_does_not_change_results(baseline):
  model, alone = baseline
  shared = forward_of(model)
  # One image only; more images than are encoded at once; an image continued from the previous batch; no new image.
  for seed, rows in enumerate(([0] * 6, [1, 2, 3, 4, 5, 6], [6, 6, 7, 7, 7, 8], [8] * 6)):
    batch = rows_of(model.config, rows, seed, images=rows_of(model.config, range(10))['image'])
    np.testing.assert_allclose(shared(batch), alone(batch), rtol=1e-5, atol=1e-5)


def test_the_same_index_in_another_split_is_another_image(baseline):
  model, alone = baseline
  shared = forward_of(model)
  for seed in range(2):
    batch = rows_of(model.config, [0] * 6, seed)
    np.testing.assert_allclose(shared(batch), alone(batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('share_images', [True, False])
def test_the_batch_size_does_not_change_a_bit(baseline, share_images):
  model, _ = baseline
  forward = forward_of(model, share_images=share_images)
  batch = rows_of(model.config, np.repeat(range(10), 2))
  expected = forward(batch)
  for size in (1, 5, 8, 17):
    parts = [{name: array[start : start + size] for name, array in batch.items()} for start in range(0, 20, size)]
    np.testing.assert_array_equal(np.concatenate([forward(part) for part in parts]), expected)


def test_each_image_is_encoded_once(baseline, monkeypatch):
  model, _ = baseline
  encoded, call = [], programs.encode
  monkeypatch.setattr(programs, 'encode', lambda *inputs: encoded.append(inputs[2]) or call(*inputs))
  shared = forward_of(model)
  images = rows_of(model.config, range(10))['image']
  for rows in ([0, 0, 0, 1, 1, 2], [2, 2, 2, 2, 3, 3], [3] * 6):
    shared(rows_of(model.config, rows, images=images))
  distinct = [len(np.unique(np.asarray(pixels).reshape(len(pixels), -1), axis=0)) for pixels in encoded]
  assert distinct == [3, 1]


def test_fusions_with_text_in_the_encoder_share_nothing():
  model = random_model(small_config())
  same = forward_of(model)(batch_for(model.config) | {'image_index': np.zeros(2, np.int32)})
  np.testing.assert_array_equal(same, forward_of(model, share_images=False)(batch_for(model.config)))
