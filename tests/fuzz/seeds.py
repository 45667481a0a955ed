"""The small models that subjects damage or run."""

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image

from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.storage import saved_model
from tests.small_models import random_model, small_config

WORDS = [
  '[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'the', 'red', 'blue', 'green', 'circle', 'square', 'large', 'small',
  'left', 'right', 'of', '##s', 'on', 'a', 'dog',
]  # fmt: skip


def text_config() -> DitSamConfig:
  """A model with a text encoder."""
  return small_config()


def sam_config() -> DitSamConfig:
  """A model without a text encoder."""
  config = small_config(text_encoder=None, fusion='none', align_corners=False)
  return dataclasses.replace(config, mask_threshold=0.5)


def save_text_model(folder: Path) -> Path:
  """Saves a model with a text encoder and a vocabulary."""
  vocabulary = folder.parent / f'{folder.name}.txt'
  vocabulary.write_text('\n'.join(WORDS) + '\n')
  return saved_model.save(folder, random_model(text_config()), vocabulary=vocabulary, data={'dataset': 'shapes'})


def save_sam(folder: Path) -> Path:
  """Saves a model without a text encoder."""
  return saved_model.save(folder, random_model(sam_config()))


def picture(height: int = 40, width: int = 56) -> np.ndarray:
  """A colour gradient, uint8 [h, w, 3]."""
  y, x = np.mgrid[:height, :width]
  return np.stack([x * 4 % 256, y * 5 % 256, (x + y) % 256], -1).astype(np.uint8)


def save_picture(path: Path, **size: int) -> Path:
  Image.fromarray(picture(**size)).save(path)
  return path
