"""All kinds of images are read as RGB, as a viewer would show them, or refused in one line."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ditsam_jax.errors import UserError
from ditsam_jax.storage.image_files import read_image, write_photo_png, write_png

RED, BLUE, WHITE = [255, 0, 0], [0, 0, 255], [255, 255, 255]


def saved(tmp_path, image, name='image.png', **options):
  path = tmp_path / name
  image.save(path, **options)
  return path


def png_chunk(kind, data):
  return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def test_colours_and_layout_of_a_png(tmp_path):
  image = Image.new('RGB', (3, 2), (0, 0, 255))
  image.putpixel((2, 0), (255, 0, 0))
  pixels = read_image(saved(tmp_path, image))
  assert pixels.shape == (2, 3, 3) and pixels.dtype == np.uint8
  assert pixels[0, 2].tolist() == RED and pixels[1, 0].tolist() == BLUE
  assert (read_image(str(tmp_path / 'image.png')) == pixels).all()
  assert (read_image(image) == pixels).all()


@pytest.mark.parametrize(
  'mode, value',
  [
    ('1', 1),
    ('L', 255),
    ('LA', (255, 255)),
    ('RGB', (255, 255, 255)),
    ('RGBA', (255, 255, 255, 255)),
    ('CMYK', (0, 0, 0, 0)),
    ('YCbCr', (255, 128, 128)),
    ('I;16', 65535),
    ('I', 65535),
    ('F', 1.0),
  ],
)
def test_white_is_white_in_every_mode(mode, value):
  assert read_image(Image.new(mode, (2, 1), value)).tolist() == [[WHITE, WHITE]]


def test_32_bits_with_8_bits_of_values_are_ambiguous():
  with pytest.raises(UserError, match=r'grey values 0..200 in 32 bits may mean 8 bits or 16'):
    read_image(Image.fromarray(np.array([[0, 200]], np.int32)))
  assert not read_image(Image.new('I', (2, 1))).any()


def test_transparency_is_composited_over_white(tmp_path):
  image = Image.new('RGBA', (3, 1))
  image.putdata([(0, 0, 0, 0), (255, 0, 0, 51), (255, 0, 0, 255)])
  expected = [[WHITE, [255, 204, 204], RED]]  # 0.2 red + 0.8 white
  assert read_image(saved(tmp_path, image)).tolist() == expected
  assert read_image(np.asarray(image)).tolist() == expected


def test_palette_with_transparency(tmp_path):
  image = Image.new('P', (2, 1))
  image.putpalette([255, 0, 0, 0, 0, 255])
  image.putdata([0, 1])
  assert read_image(saved(tmp_path, image)).tolist() == [[RED, BLUE]]
  assert read_image(saved(tmp_path, image, transparency=0)).tolist() == [[WHITE, BLUE]]


@pytest.mark.parametrize('name', ['grey.png', 'grey.tif', 'grey.pgm'])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, name):
  levels = np.array([[0, 257, 25700, 65535]], np.uint16)
  path = tmp_path / name
  if name == 'grey.pgm':  # 16-bit PGM is big-endian
    path.write_bytes(b'P5 4 1 65535\n' + levels.astype('>u2').tobytes())
  else:
    Image.fromarray(levels).save(path)
  assert read_image(path)[..., 0].tolist() == [[0, 1, 100, 255]]
  assert read_image(levels)[..., 2].tolist() == [[0, 1, 100, 255]]


def test_cmyk_jpeg(tmp_path):
  path = saved(tmp_path, Image.new('CMYK', (8, 8), (0, 255, 255, 0)), 'cmyk.jpg')
  assert np.abs(read_image(path)[4, 4].astype(int) - RED).max() <= 3


def test_exif_rotation_is_applied(tmp_path):
  image = Image.new('RGB', (4, 2), (0, 0, 255))
  image.putpixel((0, 0), (255, 0, 0))
  exif = Image.Exif()
  exif[0x0112] = 6  # rotated clockwise by 90 degrees: the top-left corner becomes top-right
  pixels = read_image(saved(tmp_path, image, exif=exif))
  assert pixels.shape == (4, 2, 3) and pixels[0, 1].tolist() == RED and pixels[0, 0].tolist() == BLUE


def test_animations_are_read_as_their_first_frame(tmp_path):
  frames = [Image.new('RGB', (2, 2), colour) for colour in ('red', 'blue')]
  path = saved(tmp_path, frames[0], 'moving.gif', save_all=True, append_images=frames[1:])
  assert read_image(path)[0, 0].tolist() == RED


def test_arrays_of_every_number_type():
  assert read_image(np.array([[False, True]]))[..., 0].tolist() == [[0, 255]]
  assert read_image(np.array([[0.0, 0.5, 1.0]]))[..., 0].tolist() == [[0, 128, 255]]
  assert read_image(np.array([[7, 255]]))[..., 0].tolist() == [[7, 255]]
  assert read_image(np.full((1, 1, 1), 9, np.uint8)).tolist() == [[[9, 9, 9]]]
  assert read_image(np.array([[[0, 255], [0, 0]]], np.uint8)).tolist() == [[[0, 0, 0], WHITE]]


def test_the_result_is_a_copy():
  array = np.zeros((2, 2, 3), np.uint8)
  pixels = read_image(array)
  array[:] = 9
  assert pixels.max() == 0


@pytest.mark.parametrize(
  'array',
  [
    np.zeros((0, 5, 3), np.uint8),
    np.zeros((3, 4, 4, 3), np.uint8),
    np.zeros((3, 8, 8), np.uint8),
    np.full((2, 2), np.nan),
    np.full((2, 2), 255.0),
    np.full((2, 2), -1),
    np.full((2, 2), 300),
    np.array([['a']]),
    np.zeros(4),
    np.ones((2, 2), complex),
  ],
  ids=str,
)
def test_arrays_that_are_not_images(array):
  with pytest.raises(UserError, match='image array'):
    read_image(array)


def test_other_objects_are_refused():
  for thing in (None, 3, [[1, 2], [3, 4]]):
    with pytest.raises(UserError, match=type(thing).__name__):
      read_image(thing)
  with pytest.raises(UserError, match='0 x 5'):
    read_image(Image.new('RGB', (0, 5)))


def noise(tmp_path, name):
  image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
  return saved(tmp_path, image, name)


def header_only_png(width, height):
  header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
  chunks = png_chunk(b'IHDR', header) + png_chunk(b'IDAT', zlib.compress(b'0')) + png_chunk(b'IEND', b'')
  return b'\x89PNG\r\n\x1a\n' + chunks


def bad_files(tmp_path):
  half_png = tmp_path / 'half.png'
  half_png.write_bytes(noise(tmp_path, 'whole.png').read_bytes()[:5000])
  half_jpg = tmp_path / 'half.jpg'
  half_jpg.write_bytes(noise(tmp_path, 'whole.jpg').read_bytes()[:1500])
  empty = tmp_path / 'empty.png'
  empty.touch()
  text = tmp_path / 'text.jpg'
  text.write_text('not an image')
  postscript = tmp_path / 'drawing.eps'  # would start Ghostscript
  Image.new('RGB', (4, 4)).save(postscript)
  bomb, big_bomb = tmp_path / 'bomb.png', tmp_path / 'big_bomb.png'
  bomb.write_bytes(header_only_png(10_000, 10_000))
  big_bomb.write_bytes(header_only_png(60_000, 60_000))
  no_pixels = tmp_path / 'no_pixels.png'
  no_pixels.write_bytes(header_only_png(0, 7))
  files = [half_png, half_jpg, empty, text, postscript, bomb, big_bomb, no_pixels]
  return [*files, tmp_path, tmp_path / 'missing.png', 'nul\0.png', '', 'x' * 5000, os.devnull]


def test_bad_files_are_named_in_one_line(tmp_path):
  for path in bad_files(tmp_path):
    with pytest.raises(UserError) as caught:
      read_image(path)
    message = str(caught.value)
    assert (repr(str(path))[:90] in message) and message.isprintable()
  with pytest.raises(UserError, match='no such file'):
    read_image(tmp_path / 'missing.png')
  with pytest.raises(UserError, match='a folder'):
    read_image(tmp_path)
  with pytest.raises(UserError, match='89,478,485 pixels'):
    read_image(tmp_path / 'bomb.png')


@pytest.mark.filterwarnings('ignore::UserWarning')  # Pillow's warnings about damaged headers
@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'GIF', 'WEBP', 'TIFF', 'BMP', 'PPM'])
def test_damaged_bytes_give_an_image_or_a_user_error(tmp_path, kind):
  rng = np.random.default_rng(0)
  whole = io.BytesIO()
  Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).save(whole, kind)
  for attempt in range(30):
    data = np.frombuffer(whole.getvalue(), np.uint8).copy()
    reach = len(data) if attempt % 2 else 80
    data[rng.integers(0, reach, 1 + attempt)] = rng.integers(0, 256, 1 + attempt)
    (tmp_path / 'damaged').write_bytes(data.tobytes())
    try:
      assert read_image(tmp_path / 'damaged').shape[2] == 3
    except UserError:
      pass


@pytest.mark.parametrize('where', ['PIL.Image.open', 'PIL.Image.Image.load'])
def test_too_little_memory_is_not_taken_for_damage(tmp_path, monkeypatch, where):
  def fail(*arguments, **options):
    raise MemoryError

  path = saved(tmp_path, Image.new('RGB', (3, 2)))
  monkeypatch.setattr(where, fail)
  with pytest.raises(MemoryError):
    read_image(path)


def test_masks_and_images_survive_a_round_trip_through_png(tmp_path):
  mask = np.array([[True, False, True]])
  write_png(tmp_path / 'new' / 'folder' / 'mask.png', mask)
  image = Image.open(tmp_path / 'new' / 'folder' / 'mask.png')
  assert image.mode == 'L' and np.asarray(image).tolist() == [[255, 0, 255]]
  picture = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
  write_png(tmp_path / 'picture.png', picture)
  assert (np.asarray(Image.open(tmp_path / 'picture.png')) == picture).all()


def test_a_failed_write_leaves_only_the_old_file(tmp_path):
  write_png(tmp_path / 'mask.png', np.ones((2, 2), bool))
  before = (tmp_path / 'mask.png').read_bytes()

  class Broken(Image.Image):
    def save(self, path, **options):
      path.write_bytes(b'half')
      raise OSError(28, 'No space left on device')

  with pytest.raises(UserError, match='No space left'):
    write_png(tmp_path / 'mask.png', Broken())
  assert (tmp_path / 'mask.png').read_bytes() == before
  assert os.listdir(tmp_path) == ['mask.png']


def test_unwritable_paths_are_refused(tmp_path):
  (tmp_path / 'file').touch()
  for path in (tmp_path, tmp_path / 'file' / 'mask.png', tmp_path / ('x' * 300), tmp_path / 'nul\0.png'):
    with pytest.raises(UserError, match='cannot write'):
      write_png(path, np.ones((2, 2), bool))
  assert os.listdir(tmp_path) == ['file']


def test_write_photo_png_is_lossless(tmp_path):
  pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
  write_photo_png(tmp_path / 'deep' / 'photo.png', pixels)
  with Image.open(tmp_path / 'deep' / 'photo.png') as image:
    assert image.format == 'PNG' and np.array_equal(np.asarray(image), pixels)
  (tmp_path / 'folder').mkdir()
  with pytest.raises(UserError, match='folder'):
    write_photo_png(tmp_path / 'folder', pixels)


def test_a_png_keeps_its_notes(tmp_path):
  write_png(tmp_path / 'a.png', np.zeros((2, 2), bool), notes={'what': 'a mask'})
  with Image.open(tmp_path / 'a.png') as image:
    assert image.info['what'] == 'a mask'
  pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
  write_photo_png(tmp_path / 'b.png', pixels, notes={'what': 'a photo', 'key': '1'})
  with Image.open(tmp_path / 'b.png') as image:
    assert image.info == {'what': 'a photo', 'key': '1'} and np.array_equal(np.asarray(image), pixels)
