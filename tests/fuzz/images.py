"""Image files: damaged ones in every format, and paths that are not regular files."""

import io
import random
from pathlib import Path

import numpy as np
from PIL import Image

from ditsam_jax.limits import MAX_PIXELS
from ditsam_jax.storage.image_files import read_image
from tests.fuzz.mutations import damaged, odd_path
from tests.fuzz.outcomes import ACCEPTED, Violation, attempt

MOST_MEMORY = 9 * 3 * MAX_PIXELS  # enough for the largest image that is accepted


def prepare(folder: Path) -> None:
  """Writes one file per format and variant."""
  pixels = np.random.default_rng(0).integers(0, 256, (24, 31, 4), np.uint8)
  rgba = Image.fromarray(pixels)
  rgb, grey = rgba.convert('RGB'), Image.fromarray(pixels[..., 0])
  turned = Image.Exif()
  turned[0x112], turned[0x10E] = 6, 'x' * 50
  files = [
    ('png', rgb, {'exif': turned}), ('png', rgba, {}), ('png', rgb.quantize(16), {'transparency': 1}),
    ('png', grey, {}), ('jpeg', rgb, {'exif': turned}), ('jpeg', rgb, {'progressive': True}),
    ('jpeg', rgb.convert('CMYK'), {}), ('webp', rgba, {'exif': turned}),
    ('webp', rgb, {'save_all': True, 'append_images': [rgba]}),
    ('gif', rgb, {'save_all': True, 'append_images': [grey]}), ('bmp', rgb, {}), ('tiff', rgba, {}),
    ('tiff', rgb, {'compression': 'tiff_lzw'}), ('tiff', rgb, {'compression': 'jpeg'}),
    ('tiff', rgb, {'compression': 'tiff_adobe_deflate', 'exif': turned}),
    ('tiff', Image.fromarray(pixels[..., 0] / np.float32(255)), {}), ('ppm', rgb, {}),
    ('ppm', Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), {}),
    ('ico', rgba, {'sizes': [(16, 16), (24, 24)]}), ('ico', rgba, {'bitmap_format': 'bmp', 'sizes': [(16, 16)]}),
    ('jpeg2000', rgb, {}), ('jpeg2000', rgba, {}), ('avif', rgb, {'speed': 10}),
  ]  # fmt: skip
  for number, (kind, image, options) in enumerate(files):
    stream = io.BytesIO()
    image.save(stream, kind.upper(), **options)
    (folder / f'{number:02}.{kind}').write_bytes(stream.getvalue())


def case(made: Path, work: Path, chance: random.Random, note) -> str:
  files = sorted(made.iterdir())
  source = chance.choice(files)
  if chance.random() < 0.05:
    file = odd_path(work, chance)
    note(repr(file)[:80])
  else:
    data, what = source.read_bytes(), []
    for _ in range(chance.choice([1, 1, 1, 3])):
      data, one = damaged(data, chance, chance.choice(files).read_bytes())
      what.append(one)
    file = work / chance.choice(['image', f'image{source.suffix}', 'a\nerror: forged.png'])
    file.write_bytes(data)
    note(f'{source.name}: {", ".join(what)}')
  outcome, pixels = attempt(lambda: read_image(file))
  if outcome == ACCEPTED:
    check_pixels(pixels)
  return outcome


def check_pixels(pixels: np.ndarray) -> None:
  """Checks the documented type and shape of the result of `read_image`."""
  right = isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
  if not right or not 1 <= pixels.shape[0] * pixels.shape[1] <= MAX_PIXELS:
    raise Violation('wrong result', f'{type(pixels)} {getattr(pixels, "shape", "")}')
