"""Images of every kind are stored with the pixels that prediction reads; where OpenCV agrees, files are unchanged."""

import io

import numpy as np
import pytest
from PIL import Image

from ditsam_jax.data.own.pictures import Picture
from ditsam_jax.data.preparation import problems
from ditsam_jax.data.preparation.images import ImageError
from ditsam_jax.data.referring import ReferringSource
from ditsam_jax.storage.image_files import read_image
from tests.data.own.pictures import jpeg, make

Y, X = np.mgrid[:40, :60]
RGB = np.stack([X * 4, Y * 6, (X + Y) * 2], -1).astype(np.uint8)
ALPHA = np.dstack([RGB, (X * 4).astype(np.uint8)])


def saved(tmp_path, image, name, **options):
  file = tmp_path / name
  (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, **options)
  return file


def turned(number):
  tags = Image.Exif()
  tags[0x0112] = number
  return tags


def read(file, size=None):
  return Picture(str(file), file.name, size).read()


def stored_pixels(data):
  """Decodes stored bytes like training."""
  import cv2

  return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)


@pytest.mark.parametrize(
  'image, name, unchanged',
  [
    (RGB, 'a.png', True),
    (RGB[..., 0], 'grey.png', True),
    (RGB, 'a.jpg', True),
    (RGB[..., 0], 'grey.jpg', True),
    (ALPHA, 'alpha.png', False),
    (Image.fromarray(RGB).convert('P'), 'palette.png', False),
    (Image.fromarray(RGB).convert('CMYK'), 'cmyk.jpg', False),
    ((RGB[..., 0].astype(np.uint16) * 256), 'deep.png', False),
    (RGB, 'a.webp', False),
    (RGB, 'a.bmp', False),
    (RGB, 'a.tif', False),
    (RGB, 'a.gif', False),
  ],
)
def test_stored_pixels_equal_those_of_prediction(tmp_path, image, name, unchanged):
  file = saved(tmp_path, image, name)
  found = read(file)
  theirs = read_image(file)
  assert (found.height, found.width) == theirs.shape[:2] == (40, 60)
  assert (found.data == file.read_bytes()) == unchanged
  if name.endswith('jpg') and unchanged:  # JPEG decoders differ slightly
    assert np.abs(stored_pixels(found.data).astype(int) - theirs).max() <= 3
  else:
    np.testing.assert_array_equal(stored_pixels(found.data), theirs)


@pytest.mark.parametrize('kind', ['JPEG', 'MPO'])
@pytest.mark.parametrize('orientation', range(2, 9))
def test_exif_orientation_is_applied_unless_the_annotated_size_is_unrotated(tmp_path, orientation, kind):
  more = {'save_all': True, 'append_images': [Image.fromarray(RGB)]} if kind == 'MPO' else {}  # like cameras
  file = saved(tmp_path, RGB, 'a.jpg', format=kind, exif=turned(orientation), quality=95, **more)
  found = read(file)
  np.testing.assert_array_equal(stored_pixels(found.data), read_image(file))
  assert not found.orientation_unsure
  if orientation > 4:
    assert (found.height, found.width) == (60, 40)
    unrotated = read(file, (40, 60))  # as in COCO's annotations
    assert unrotated.data == file.read_bytes() and unrotated.height == 40 and not unrotated.orientation_unsure
    rotated = read(file, (60, 40))
    assert rotated.height == 60 and not rotated.orientation_unsure


@pytest.mark.parametrize('orientation', range(2, 9))
def test_an_image_is_rotated_if_the_annotated_size_fits_both_ways(tmp_path, orientation):
  pixels = RGB if orientation < 5 else RGB[:, :40]
  file = saved(tmp_path, pixels, 'a.jpg', exif=turned(orientation), quality=95)
  found = read(file, pixels.shape[:2])
  np.testing.assert_array_equal(stored_pixels(found.data), read_image(file))
  assert found.orientation_unsure
  assert not read(saved(tmp_path, pixels, 'b.jpg', exif=turned(1)), pixels.shape[:2]).orientation_unsure


def test_exif_orientation_of_png_is_applied(tmp_path):
  file = saved(tmp_path, RGB, 'a.png', exif=turned(6))
  found = read(file)
  np.testing.assert_array_equal(stored_pixels(found.data), np.rot90(RGB, -1))


def test_digests_depend_only_on_pixels(tmp_path):
  digests = [read(saved(tmp_path, RGB, name)).digest for name in ('a.png', 'b.bmp', 'c.tif')]
  assert len(set(digests)) == 1 and digests[0] != read(saved(tmp_path, RGB[::-1], 'd.png')).digest
  assert digests[0] != read(saved(tmp_path, RGB.reshape(60, 40, 3), 'e.png')).digest


@pytest.mark.parametrize('damage', ['missing', 'empty', 'cut', 'text', 'folder', 'device', 'bomb'])
def test_unreadable_images_are_problems(tmp_path, damage):
  file = saved(tmp_path, RGB, 'a.jpg')
  data = file.read_bytes()
  file.unlink()
  if damage == 'folder':
    file.mkdir()
  elif damage == 'device':
    file.symlink_to('/dev/zero')
  elif damage == 'bomb':
    header = io.BytesIO()
    Image.new('1', (20_000, 20_000)).save(header, 'png')
    file.write_bytes(header.getvalue())
  elif damage != 'missing':
    file.write_bytes({'empty': b'', 'cut': data[:-200], 'text': b'hello'}[damage])
  with pytest.raises(ImageError) as error:
    read(file)
  assert error.value.kind == (problems.MISSING_FILE if damage == 'missing' else problems.UNREADABLE)
  assert str(error.value).isprintable()


def test_a_wrong_annotated_size_is_a_problem(tmp_path):
  with pytest.raises(ImageError, match='60 x 40, not 60 x 41') as error:
    read(saved(tmp_path, RGB, 'a.png'), (41, 60))
  assert error.value.kind == problems.OTHER_SIZE


def test_jpeg_files_are_stored_unchanged_in_the_data_set(tmp_path):
  from ditsam_jax import prepare

  own = make(tmp_path, 1)
  (own.photos / 'a.jpg').write_bytes(jpeg(own.pixels['0.png']))
  file = own.write_lines([{'image': 'a.jpg', 'text': 'a', 'mask': 'masks/0.png'}])
  assert prepare.main(own.arguments(file)) == 0
  record = ReferringSource(own.root / 'data' / 'mine' / '1.0.0', 'train').image(0)
  assert list(record._features['image'].bytes_list.value) == [(own.photos / 'a.jpg').read_bytes()]
