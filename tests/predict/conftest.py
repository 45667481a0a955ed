"""The command with a stand-in for the model, and one image."""

import numpy as np
import pytest

from ditsam_jax import predict
from tests.predict.command import BrightSegmenter, saved


@pytest.fixture(autouse=True)
def bright_segmenter(monkeypatch):
  monkeypatch.setattr(predict, 'Segmenter', BrightSegmenter)
  monkeypatch.setattr(BrightSegmenter, 'made', [])


@pytest.fixture
def image(tmp_path):
  pixels = np.zeros((10, 20, 3), np.uint8)
  pixels[2:6, 5:15] = 255
  return saved(tmp_path / 'scene.png', pixels)
