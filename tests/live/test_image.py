"""Pictures in JavaScript become the same input as in Python."""

import base64
import json

import cv2
import numpy as np
import pytest
from PIL import Image

from ditsam_jax.geometry.masks import encode_rle
from ditsam_jax.inference.framing import frame
from ditsam_jax.storage.description import read_config
from tests.live.conftest import LIVE

pytestmark = pytest.mark.slow
SIZES = [  # (height, width) -> (height, width)
  ((160, 120), (128, 96)),
  ((256, 256), (128, 128)),
  ((384, 384), (128, 128)),
  ((100, 77), (128, 99)),
  ((33, 500), (8, 128)),
  ((1, 9), (14, 128)),
  ((480, 640), (96, 128)),
  ((64, 128), (64, 128)),
  ((40, 56), (91, 128)),
  ((7, 3), (128, 55)),
  ((129, 130), (127, 128)),
]


def picture(height, width, seed=0):
  """Noise over a gradient, uint8 [height, width, 3]."""
  noise = np.random.default_rng(seed).integers(0, 90, (height, width, 3))
  return (noise + np.linspace(0, 165, width)[None, :, None]).astype(np.uint8)


def called(page, module, function, image, dtype, *arguments):
  """Calls a function of a module with a picture and further arguments; returns its result, an array of `dtype`."""
  alpha = np.full((*image.shape[:2], 1), 255, np.uint8)
  pixels = base64.b64encode(np.concatenate([image, alpha], 2).tobytes()).decode()
  found = page.evaluate(
    """async ([module, name, pixels, height, width, rest]) => {
      const functions = await import(module);
      const bytes = Uint8ClampedArray.from(atob(pixels), (character) => character.charCodeAt());
      const found = functions[name]({ pixels: bytes, height, width }, ...rest);
      return btoa(Array.from(new Uint8Array(found.buffer), (byte) => String.fromCharCode(byte)).join(''));
    }""",
    [module, function, pixels, *image.shape[:2], list(arguments)],
  )
  return np.frombuffer(base64.b64decode(found), dtype)


@pytest.mark.verifies("Resizing of the live page's pictures", against='OpenCV and Pillow', within='exact')
@pytest.mark.parametrize('program', ['OpenCv', 'Pillow'])
def test_resizing_gives_the_same_bytes(modules, program):
  for (height, width), (rows, columns) in SIZES:
    image = picture(height, width)
    if program == 'OpenCv':
      expected = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_LINEAR)
    else:
      expected = np.asarray(Image.fromarray(image).resize((columns, rows), Image.Resampling.BILINEAR))
    found = called(modules, '/image.js', f'resizedAs{program}', image, np.uint8, columns, rows)
    assert np.array_equal(found.reshape(rows, columns, 4)[..., :3], expected), (height, width)


@pytest.mark.parametrize('checkpoint', ['shapes', 'sam_shapes_multimask'])
def test_the_models_get_the_same_square(modules, checkpoint):
  config = read_config(checkpoint)
  about = json.loads((LIVE / 'models' / checkpoint / 'interface.json').read_text())
  for size in [(128, 128), (96, 128), (77, 100), (101, 128), (3, 250), (300, 211)]:
    image = picture(*size)
    found = called(modules, '/image.js', 'square', image, np.float32, about['image'])
    expected = frame(image, config).square.pixels
    assert np.array_equal(found.reshape(3, *expected.shape[:2]).transpose(1, 2, 0), expected), size


def test_run_lengths_are_those_of_pycocotools(modules):
  for seed, share in enumerate((0.0, 1.0, 0.01, 0.5)):
    mask = np.random.default_rng(seed).random((37, 61)) < share
    mask[5:30, 10:12] |= share > 0
    found = modules.evaluate(
      """async ([mask, width, height]) => {
        const { encoded, measured } = await import('/mask.js');
        return { rle: encoded(Uint8Array.from(mask), width, height), ...measured(Uint8Array.from(mask), width) };
      }""",
      [mask.astype(int).ravel().tolist(), 61, 37],
    )
    assert found['rle'] == encode_rle(mask)
    assert found['area'] == mask.sum()
    rows, columns = np.nonzero(mask)
    assert found['box'] == ([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if mask.any() else None)
