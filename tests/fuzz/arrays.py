"""Images in memory: arrays of every dtype and shape, PIL images of every mode, and other objects."""

import random
from pathlib import Path

import numpy as np
from PIL import Image

from ditsam_jax.storage.image_files import read_image
from tests.fuzz.images import check_pixels
from tests.fuzz.mutations import NUMBERS, VALUES
from tests.fuzz.outcomes import ACCEPTED, Violation, attempt

MOST_MEMORY = 2**30
_TYPES = '? b B h H i I l L q Q e f d g F D O S3 U3 M8[s] m8[s]'.split()
_MODES = '1 L P RGB RGBA CMYK YCbCr LAB HSV I F LA PA RGBX RGBa La I;16 I;16L I;16B'.split()
_SIDES = [0, 1, 2, 3, 4, 5, 17, 300, 9460]


def prepare(folder: Path) -> None:
  """Nothing."""


def case(made: Path, work: Path, chance: random.Random, note) -> str:
  match chance.choice(['array', 'array', 'array', 'huge', 'mode', 'value']):
    case 'huge':  # broadcast from one byte; neither the array nor a converted copy may be allocated
      image = np.broadcast_to(np.uint8(1), (chance.choice([9460, 2**20, 2**31]), chance.choice([9460, 2**20]), 3))
      note(f'{image.shape}')
      outcome, _ = attempt(lambda: read_image(image))
      if outcome == ACCEPTED:
        raise Violation('wrong result', 'too many pixels were accepted')
      return outcome
    case 'mode':
      mode, size = chance.choice(_MODES), (chance.choice(_SIDES[:-1]), chance.choice(_SIDES[:-1]))
      note(f'PIL {mode} {size}')
      image = Image.new(mode, size)
    case 'value':
      image = chance.choice(VALUES)
      if isinstance(image, str):
        image = image.encode('utf-8', 'surrogatepass')
      note(f'{type(image).__name__}')
    case _:
      image = _array(chance)
      note(f'{image.dtype} {image.shape}')
  outcome, pixels = attempt(lambda: read_image(image))
  if outcome == ACCEPTED:
    check_pixels(pixels)
    values = np.asarray(image)
    if values.dtype.kind in 'fc' and not np.isfinite(values.astype(complex)).all():
      raise Violation('wrong result', 'an image with values that are not finite was accepted')
  return outcome


def _array(chance: random.Random) -> np.ndarray:
  kind = np.dtype(chance.choice(_TYPES))
  axes = chance.choice([0, 1, 2, 2, 3, 3, 3, 4])
  shape = tuple(chance.choice(_SIDES[:-1]) for _ in range(min(axes, 2))) + (chance.randrange(6),) * max(0, axes - 2)
  rng = np.random.default_rng(chance.randrange(2**32))
  array = rng.random(shape) if chance.random() < 0.6 else rng.integers(0, 256, shape).astype(float)
  if array.size and chance.random() < 0.4:
    number = chance.choice([value for value in NUMBERS if abs(value) < 1e300 or not abs(value) <= 1e300])
    array.flat[chance.randrange(array.size)] = min(number, 10**308) if number == number else number
  with np.errstate(all='ignore'):
    array = array.astype(kind) if kind.kind not in 'mM' else np.zeros(shape, kind)
  return array[::-1] if chance.random() < 0.2 and axes else array
