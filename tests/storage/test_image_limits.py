"""Reading an image takes memory in proportion to its pixels, whatever the file claims; measured in a subprocess."""

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ditsam_jax.errors import UserError
from ditsam_jax.storage import image_files
from ditsam_jax.storage.image_files import read_image

ROOT = Path(__file__).parents[2]
SIDE = 2000
SLACK = 40  # MiB for buffers and the interpreter

# Prints each file's peak memory in MiB, above the memory in use before, and its shape or error.
MEASURE = """
import sys
import PIL.Image
from ditsam_jax.storage.image_files import read_image

def memory(field):
  return int(open('/proc/self/status').read().split(field + ':')[1].split()[0]) / 1024

PIL.Image.init()
for path in sys.argv[1:]:
  open('/proc/self/clear_refs', 'w').write('5')  # reset the peak
  before = memory('VmRSS')
  try:
    result = 'x'.join(map(str, read_image(path).shape))
  except Exception as error:
    result = f'{type(error).__name__} {error}'
  print(f'{memory("VmHWM") - before:.0f} {result}', flush=True)
"""


def measured(paths):
  paths = list(paths)
  done = subprocess.run(
    [sys.executable, '-c', MEASURE, *map(str, paths)],
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
    timeout=100,
  )
  assert done.returncode == 0 and len(done.stdout.splitlines()) == len(paths), done.stderr
  return [(int(mib), result) for mib, result in (line.split(' ', 1) for line in done.stdout.splitlines())]


def chunk(kind, data):
  return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def png(*more, after=b''):
  """A PNG of 2 x 2 pixels with extra chunks before and after the pixels."""
  header = chunk(b'IHDR', struct.pack('>IIBBBBB', 2, 2, 8, 2, 0, 0, 0))
  pixels = chunk(b'IDAT', zlib.compress(bytes(14)))
  return b'\x89PNG\r\n\x1a\n' + header + b''.join(more) + pixels + after + chunk(b'IEND', b'')


def tiff(data, **tags):
  """A TIFF of 8 x 8 pixels with changed or added tags: (type, count, value)."""
  usual = {256: (3, 1, 8), 257: (3, 1, 8), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 273: (4, 1, 1000)}
  entries = usual | {277: (3, 1, 1), 278: (3, 1, 8), 279: (4, 1, 64)} | {int(tag[1:]): one for tag, one in tags.items()}
  packed = b''.join(struct.pack('<HHLL', tag, *one) for tag, one in sorted(entries.items()))
  return b'II*\0\x08\0\0\0' + struct.pack('<H', len(entries)) + packed + struct.pack('<L', 0) + data


@pytest.mark.multiprocess
@pytest.mark.skipif(not os.access('/proc/self/clear_refs', os.W_OK), reason='needs /proc')
def test_memory_is_a_small_multiple_of_the_rgb_pixels(tmp_path):
  y, x = np.mgrid[:SIDE, :SIDE]
  rgba = Image.fromarray(np.stack([x % 256, y % 256, (x + y) % 256, x // 3 % 256], -1).astype(np.uint8))
  rgb, grey = rgba.convert('RGB'), rgba.convert('L')
  turned = Image.Exif()
  turned[0x0112] = 6
  cases = {  # image, limit as a multiple of the RGB pixels, options
    'rgb.png': (rgb, 3, {}),
    'rgba.png': (rgba, 3, {}),
    'la.png': (rgba.convert('LA'), 3, {}),
    'palette.png': (rgb.quantize(16, method=2), 3, {'transparency': 3}),
    'key.png': (rgb, 3, {'transparency': (1, 2, 3)}),
    '16.png': (Image.fromarray(np.asarray(grey).astype(np.uint16) * 257), 3, {}),
    'bits.png': (grey.convert('1'), 3, {}),
    'turned.jpg': (rgb, 3, {'exif': turned}),
    'cmyk.jpg': (rgb.convert('CMYK'), 3, {}),
    'progressive.jpg': (rgb, 4, {'progressive': True, 'subsampling': 0}),
    'float.tif': (Image.fromarray(np.asarray(grey) / np.float32(255)), 3, {}),
    'one_strip.tif': (rgba, 4.5, {'compression': 'tiff_adobe_deflate', 'tiffinfo': {278: SIDE}}),
    'turned.tif': (rgb, 3, {'exif': turned}),
    'moving.gif': (grey, 3, {'save_all': True, 'append_images': [grey.transpose(0)] * 3}),
    'alpha.bmp': (rgba, 3, {}),
    'alpha.webp': (rgba, 8, {'lossless': True, 'method': 0, 'quality': 0}),
    'alpha.jp2': (rgba, 9, {'irreversible': True, 'quality_layers': [40]}),
    'alpha.avif': (rgba, 8, {'speed': 10}),
  }
  for name, (image, _, options) in cases.items():
    image.save(tmp_path / name, **options)
  pixels = SIDE**2 * 3 / 2**20
  measurements = measured(tmp_path / name for name in cases)
  for (name, (_, most, _)), (mib, result) in zip(cases.items(), measurements, strict=True):
    assert result == f'{SIDE}x{SIDE}x3'
    assert mib < most * pixels + SLACK, f'{name}: {mib / pixels:.1f} times the pixels'


@pytest.mark.multiprocess
@pytest.mark.skipif(not os.access('/proc/self/clear_refs', os.W_OK), reason='needs /proc')
def test_decompression_bombs_take_little_memory(tmp_path):
  small = io.BytesIO()
  Image.new('RGB', (8, 8)).save(small, 'JPEG')
  jpeg = small.getvalue()
  app1 = b'\xff\xe1' + struct.pack('>H', 65535) + b'Exif\0\0' + bytes(65527)
  files = {  # content, and part of the expected message
    'text.png': (png(chunk(b'tEXt', b'a\0' + bytes(2**26))), 'metadata'),
    'text_behind.png': (png(after=chunk(b'tEXt', b'a\0' + bytes(2**25)) * 3), 'metadata'),
    'pieces.png': (png(chunk(b'abcd', b'') * 30_000), 'metadata'),
    'zipped.png': (png(chunk(b'zTXt', b'a\0\0' + zlib.compress(bytes(2**28)))), 'too large'),
    'profile.png': (png(chunk(b'iCCP', b'a\0\0' + zlib.compress(bytes(2**28)))), 'too large'),
    'exif.jpg': (jpeg[:2] + app1 * 260 + jpeg[2:], 'metadata'),
    'tags.tif': (tiff(bytes(2**26), t40000=(1, 2**26 - 2000, 500)), 'metadata'),
    'overlapping.tif': (tiff(bytes(2**20), **{f't{i}': (1, 2**19, 500) for i in range(30_000, 31_000)}), '8x8x3'),
    'tile.tif': (tiff(bytes(2000), t322=(4, 1, 30_000), t323=(4, 1, 30_000), t324=(4, 1, 900)), 'tiles of 30000'),
    'width.tif': (tiff(bytes(2000), t256=(4, 1, 2**31 - 1)), 'pixels'),
    'screen.gif': (b'GIF89a' + b'\xff' * 4 + b'\0\0\0,' + bytes(4) + b'\xff' * 4 + b'\0\2\2D\1\0;', 'pixels'),
  }
  for name, (data, _) in files.items():
    (tmp_path / name).write_bytes(data)
  with open(tmp_path / 'sparse.webp', 'wb') as file:
    file.write(b'RIFF' + struct.pack('<I', 2**32 - 10) + b'WEBPVP8X')
    file.truncate(2**32)
  files['sparse.webp'] = (b'', 'metadata')
  measurements = measured(tmp_path / name for name in files)
  for (name, (_, expected)), (mib, result) in zip(files.items(), measurements, strict=True):
    assert expected in result and (result.startswith('UserError image ') or expected == '8x8x3'), f'{name}: {result}'
    assert mib < 200, f'{name}: {mib} MiB'


def test_arrays_and_pil_images_have_the_same_limits_as_files(monkeypatch):
  with pytest.raises(UserError, match='the image array: more than 89,478,485 pixels'):
    read_image(np.broadcast_to(np.zeros((1, 1, 4), np.uint8), (10_000, 10_000, 4)))
  monkeypatch.setattr(image_files, 'MAX_PIXELS', 100)
  assert read_image(np.zeros((10, 10))).shape == read_image(Image.new('L', (10, 10))).shape == (10, 10, 3)
  for image in (np.zeros((10, 11)), Image.new('L', (10, 11)), Image.new('1', (101, 1))):
    with pytest.raises(UserError, match='more than 100 pixels'):
      read_image(image)


@pytest.mark.parametrize('tile', [1, 7, 64])
@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', 'I;16', 'I', 'F'])
def test_the_tile_size_does_not_change_the_pixels(monkeypatch, mode, tile):
  pixels = np.random.default_rng(0).integers(0, 256, (9, 31, 4), np.uint8)
  image = Image.fromarray(pixels)
  if mode in ('I;16', 'I', 'F'):
    image = Image.fromarray({'I;16': pixels[..., 0].astype(np.uint16) * 200, 'I': pixels[..., 0].astype(np.int32) * 200}
                            .get(mode, pixels[..., 0] / np.float32(255)))  # fmt: skip
  image = image.convert('L').convert(mode) if mode in ('1', 'LA') else image.convert(mode)
  array = pixels[..., :2].astype(np.float32) / 255
  whole, of_array = read_image(image), read_image(array)
  monkeypatch.setattr(image_files, '_TILE', tile)
  np.testing.assert_array_equal(read_image(image), whole)
  np.testing.assert_array_equal(read_image(array), of_array)


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('name', ['image.png', 'image.tif'])
def test_orientations_equal_pillows(tmp_path, orientation, name):
  from PIL import ImageOps

  image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8))
  exif = Image.Exif()
  exif[0x0112] = orientation
  image.save(tmp_path / 'reference.png', exif=exif)
  image.save(tmp_path / name, exif=exif)
  turned = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / 'reference.png')))
  np.testing.assert_array_equal(read_image(tmp_path / name), turned)


def test_pipes_are_refused_without_blocking(tmp_path):
  os.mkfifo(tmp_path / 'pipe.png')
  with pytest.raises(UserError, match='a device or a pipe'):
    read_image(tmp_path / 'pipe.png')
  with pytest.raises(UserError) as error:
    read_image(tmp_path / 'a\nerror: pwned\x1b[31m.png')
  assert str(error.value).isprintable()
