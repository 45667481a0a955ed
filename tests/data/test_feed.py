"""The input pipeline yields the same tensors as a plain PyTorch loader that makes the same random choices."""

import numpy as np
import pytest

from benchmarks import photographs, torch_feed
from ditsam_jax.data import pipeline
from ditsam_jax.data.augmentation import AugmentationConfig
from ditsam_jax.data.evaluation_batches import evaluation_batches
from ditsam_jax.tokenization import read_vocabulary

SIZE, TOKENS = 512, 20
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope='module')
def loaders(tmp_path_factory):
  root = tmp_path_factory.mktemp('photographs')
  photographs.write(root, 3)
  source, tokenizer = photographs.open_prepared(root, 'train', TOKENS)
  plain = {
    train: torch_feed.PlainDataset(
      root, 'train', read_vocabulary(tokenizer.vocabulary_file), SIZE, TOKENS, MEAN, STD, train
    )
    for train in (True, False)
  }
  return source, tokenizer, plain


def assert_alike(row, tensors):
  image, *rest = (tensor.numpy() for tensor in tensors)
  # The pixels are equal; our normalisation table rounds once, PyTorch three times.
  np.testing.assert_allclose(row['image'], image.transpose(1, 2, 0), rtol=0, atol=1e-6)
  for name, expected in zip(('mask', 'token_ids', 'token_mask'), rest):
    np.testing.assert_array_equal(row[name], expected, err_msg=name)


@pytest.mark.slow
def test_training_samples_equal_a_plain_loaders(loaders):
  source, tokenizer, plain = loaders
  transform = pipeline.TrainTransform(tokenizer, SIZE, MEAN, STD, AugmentationConfig())
  for seed in range(24):
    index = seed % len(source)
    row = transform.random_map(source[index], np.random.default_rng(seed))
    square = np.zeros((SIZE, SIZE, 3), np.float32)
    row['image'].place(square)
    assert_alike(row | {'image': square}, plain[True].drawn(index, np.random.default_rng(seed)))


@pytest.mark.slow
def test_evaluation_samples_equal_a_plain_loaders(loaders):
  source, tokenizer, plain = loaders
  batches = evaluation_batches(source, tokenizer, image_size=SIZE, pixel_mean=MEAN, pixel_std=STD, batch_size=8)
  rows = [
    {name: array[row] for name, array in batch.items()}
    for batch, _ in batches
    for row in np.flatnonzero(batch['valid'])
  ]
  assert len(rows) == len(plain[False]) > len(source)
  for index, row in enumerate(rows):
    assert_alike(row, plain[False][index])
