"""Reads any image format as uint8 RGB [h, w, 3]; writes PNG and JPEG files atomically.

Memory: Pillow's image takes 1 to 4 bytes per pixel and the result 3; the conversion works tile by tile. The peak is at
most 3 times the size of the result for most files, and 4 to 4.5 times for progressive JPEG and single-strip TIFF.
Pillow's decoders for WebP, AVIF and JPEG 2000 keep copies: 8 to 9 times. The size of metadata is limited too.
"""

import functools
import io
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from ditsam_jax.errors import UserError
from ditsam_jax.limits import MAX_PIXELS
from ditsam_jax.storage.bucket import BucketPath
from ditsam_jax.storage.files import open_regular, written_whole
from ditsam_jax.terminal import printable

# Common formats. Pillow's other readers are disabled, because some start programs (EPS).
FORMATS = ('PNG', 'JPEG', 'WEBP', 'GIF', 'BMP', 'DIB', 'TIFF', 'PPM', 'ICO', 'JPEG2000', 'AVIF')

_MOST_FILE = 2**36  # bytes; limits on how much is read follow
_MOST_METADATA = 2**26  # bytes of text, profiles, tags and thumbnails that a decoder may read
_MOST_JPEG_METADATA = 2**24  # lower, because Pillow concatenates pieces in quadratic time
_MOST_READS = 20_000  # read calls for a header, for the same reason (GIF comments)
_MOST_BYTES_A_PIXEL = 16
_PNG_HEADER = 33  # bytes: the signature, and the chunk IHDR
_TILE = 2**18  # pixels per tile

# `warnings.catch_warnings` changes process-wide state, so only one thread at a time may use it.
_header_lock = threading.Lock()


@functools.cache
def endings() -> frozenset[str]:
  """Returns the endings of image files' names, in lower case: '.jpg', ..."""
  return frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in FORMATS)


def read_image(source: str | os.PathLike | Image.Image | Any) -> np.ndarray:
  """Reads an image as RGB.

  Transparent areas become white. EXIF rotation is applied. Animations are read as their first frame.
  16-bit grey is scaled to 8 bits (65535 becomes 255).

  Args:
    source: a path, a PIL image, or an array [h, w], [h, w, 1], [h, w, 2] (grey, alpha), [h, w, 3] or
      [h, w, 4] (RGB, alpha). uint8 is 0..255, uint16 0..65535, bool and floats 0..1, other integers 0..255.

  Returns:
    uint8 [h, w, 3].

  Raises:
    UserError: the file is missing, not an image, damaged, empty or too large, or the array has another shape or type.
  """
  if isinstance(source, Image.Image):
    return _to_rgb(source, 'the PIL image')
  if isinstance(source, str | os.PathLike):
    return _read_file(source)
  if hasattr(source, '__array__'):
    return _from_array(np.asarray(source), 'the image array')
  raise UserError(f'an image of type {type(source).__name__}: expected a path, a PIL image or an array')


def write_png(path: str | os.PathLike, image: np.ndarray | Image.Image, *, notes: dict[str, str] | None = None) -> None:
  """Writes uint8 [h, w] or [h, w, 3] as PNG, with `notes` as text chunks; bool becomes 0/255.

  Writes atomically and creates missing folders.

  Raises:
    UserError: the file cannot be written.
  """
  if not isinstance(image, Image.Image):
    image = np.asarray(image)
    image = Image.fromarray(image.astype(np.uint8) * 255 if image.dtype == bool else image)
  texts = PngImagePlugin.PngInfo()
  for name, text in (notes or {}).items():
    texts.add_text(name, text)
  _write(path, lambda unfinished: image.save(unfinished, format='PNG', compress_level=4, pnginfo=texts))


def write_photo_png(path: str | os.PathLike, pixels: np.ndarray, *, notes: dict[str, str] | None = None) -> None:
  """Like `write_png` for uint8 [h, w, 3], in a third of the time. For photos, file sizes are the same.

  Raises:
    UserError: the file cannot be written.
  """
  import cv2  # imported late: reading images does not need it

  quick = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
  encoded = cv2.imencode('.png', cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), quick)[1].data

  def write(unfinished: Path) -> None:
    with open(unfinished, 'wb') as file:
      file.write(encoded[:_PNG_HEADER])
      for name, text in (notes or {}).items():  # OpenCV writes none
        PngImagePlugin.putchunk(file, b'tEXt', f'{name}\0{text}'.encode('latin-1'))
      file.write(encoded[_PNG_HEADER:])

  _write(path, write)


def _write(target: str | os.PathLike, write: Callable[[Path], Any]) -> None:
  path = target if isinstance(target, BucketPath) else Path(target)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as unfinished:
      write(unfinished)
  except (OSError, ValueError) as error:  # ValueError: an invalid file name
    reason = getattr(error, 'strerror', None) or error
    raise UserError(f'cannot write {str(path)!r}: {reason}; choose another output') from error


class _Metered(io.BufferedReader):
  """A file with a limit on how much decoders may read, because they keep metadata of any size in memory."""

  def __init__(self, file: io.RawIOBase | io.BytesIO, size: int, name: str):
    super().__init__(file)  # pyright: ignore[reportArgumentType]  # of which it asks what BytesIO has
    self._name, self._size = name, size
    self._most = _MOST_JPEG_METADATA if self.peek(2).startswith(b'\xff\xd8') else _MOST_METADATA
    self.allow(self._most, _MOST_READS)

  def allow(self, read: int, calls: float = float('inf')) -> None:
    """Sets the number of bytes and read calls allowed from now on."""
    self._left, self._calls = read, calls

  def read(self, size: int | None = -1, /) -> bytes:
    if size is None or size < 0:
      size = self._size
    data = super().read(min(size, self._left + 1))
    self._left -= len(data)
    self._calls -= 1
    if self._left < 0 or self._calls < 0:
      raise UserError(
        f'{self._name}: more metadata than {self._most // 2**20} MiB, or in more than {_MOST_READS:,} pieces; '
        f'save it without, or as PNG'
      )
    return data


def read_encoded(data: bytes, name: str) -> np.ndarray:
  """`read_image` of a file's bytes; errors start with `name`."""
  return _read(io.BytesIO(data), len(data), name, None)


def read_opened(file: io.BufferedReader, name: str, *, most_pixels: int | None = None) -> np.ndarray:
  """Reads an open image file as `read_image` does, and closes it.

  Args:
    file: at its start.
    name: what error messages call it.
    most_pixels: larger images are refused before they are decoded.

  Raises:
    UserError: see `read_image`.
  """
  size = os.fstat(file.fileno()).st_size
  return _read(file.detach(), size, name, most_pixels)


def _read_file(source: str | os.PathLike) -> np.ndarray:
  name = f"image '{printable(os.fspath(source))}'"
  if not os.fspath(source):
    raise UserError(f'{name}: no name, expected an image file')
  return read_opened(open_regular(source, most_bytes=_MOST_FILE, name=name), name)


def _read(raw: io.RawIOBase | io.BytesIO, size: int, name: str, most_pixels: int | None) -> np.ndarray:
  try:
    with _Metered(raw, size, name) as file, _open(file, name, most_pixels) as image:
      _check_size(image.width, image.height, name, most_pixels)
      _check_blocks(image, name)
      file.allow(_MOST_METADATA + _MOST_BYTES_A_PIXEL * image.width * image.height)
      return _to_rgb(image, name, close=True)
  except UnidentifiedImageError as error:
    raise UserError(f'{name}: not an image, or damaged; expected {", ".join(FORMATS)}') from error
  except (UserError, MemoryError):
    raise
  except Exception as error:  # Pillow raises almost anything for damaged headers
    raise UserError(f'{name}: cannot be read ({_reason(error)})') from error


def _open(file: io.BufferedReader, name: str, most_pixels: int | None) -> Image.Image:
  """Reads only the header (ICO files entirely)."""
  try:
    with _header_lock, warnings.catch_warnings():
      warnings.simplefilter('ignore')  # Pillow's warnings about odd tags
      warnings.simplefilter('error', Image.DecompressionBombWarning)
      return Image.open(file, formats=FORMATS)
  except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
    raise UserError(_too_many_pixels(name, most_pixels)) from error


def _check_blocks(image: Image.Image, name: str) -> None:
  """Raises UserError if a TIFF's tiles, which are decoded one by one, are far larger than the image."""
  tags = getattr(image, 'tag_v2', {})
  width, height = tags.get(322, 0), tags.get(323, 0)
  most = 4 * image.width * image.height + 2**22
  if not (isinstance(width, int) and isinstance(height, int) and width * height <= most):
    raise UserError(f'{name}: {image.width} x {image.height} pixels in tiles of {width} x {height}; save it as PNG')


def _to_rgb(image: Image.Image, name: str, *, close: bool = False) -> np.ndarray:
  """Loads a PIL image, if need be, and converts it to RGB. `close` frees the image before the result is rotated."""
  _check_size(image.width, image.height, name)
  try:
    image.load()
    orientation = image.getexif().get(0x0112, 1)
    _check_size(image.width, image.height, name)
    pixels = _converted(image, name)
    if close:
      image.close()
    return _ORIENTATIONS.get(orientation, np.ascontiguousarray)(pixels)
  except (UserError, MemoryError):
    raise
  except Exception as error:  # Pillow raises almost anything for damaged data
    raise UserError(f'{name}: damaged or truncated ({_reason(error)}); get a complete copy') from error


# Rotations and flips by EXIF orientation.
_ORIENTATIONS = {
  2: lambda pixels: np.ascontiguousarray(pixels[:, ::-1]),
  3: lambda pixels: np.ascontiguousarray(pixels[::-1, ::-1]),
  4: lambda pixels: np.ascontiguousarray(pixels[::-1]),
  5: lambda pixels: np.ascontiguousarray(pixels.swapaxes(0, 1)),
  6: lambda pixels: np.ascontiguousarray(np.rot90(pixels, -1)),
  7: lambda pixels: np.ascontiguousarray(pixels[::-1, ::-1].swapaxes(0, 1)),
  8: lambda pixels: np.ascontiguousarray(np.rot90(pixels)),
}


def _converted(image: Image.Image, name: str) -> np.ndarray:
  """Converts any mode (grey or palette, straight or premultiplied alpha, 8 to 32 bits) to RGB, tile by tile."""
  out = np.empty((image.height, image.width, 3), np.uint8)
  boxes = [(x.start, y.start, x.stop, y.stop) for y, x in _tiles(*out.shape[:2])]
  if image.mode.startswith(('I', 'F')):
    tiles = lambda: (np.asarray(image.crop(box)) for box in boxes)
    if image.mode == 'F':
      return _from_tiles(tiles, np.dtype(np.float32), out, name)
    low, high = _range(tiles())
    if low < 0 or high > 65535:
      raise UserError(f'{name}: grey values {low}..{high}, expected 8 or 16 bits a pixel')
    if image.mode == 'I' and 0 < high < 256:
      raise UserError(
        f'{name}: grey values {low}..{high} in 32 bits may mean 8 bits or 16; save it with as many as it has'
      )
    return _from_tiles(lambda: (tile.astype(np.uint16) for tile in tiles()), np.dtype(np.uint16), out, name)
  for (y, x), box in zip(_tiles(*out.shape[:2]), boxes):
    tile = image.crop(box)
    if image.has_transparency_data:
      out[y, x] = _over_white(np.asarray(_to_mode(tile, 'RGBA')))
    else:
      out[y, x] = np.asarray(_to_mode(tile, 'RGB'))
  return out


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
  # Pillow converts premultiplied grey only to straight grey, and palettes with alpha only to RGBA.
  if image.mode == 'La':
    image = image.convert('LA')
  return image.convert(mode)


def _from_array(array: np.ndarray, name: str) -> np.ndarray:
  channels = array.shape[2] if array.ndim == 3 else 1
  if array.ndim not in (2, 3) or channels not in (1, 2, 3, 4):
    raise UserError(f'{name}: shape {array.shape}: expected [h, w] or [h, w, channels] with 1 to 4 channels')
  height, width = array.shape[:2]
  _check_size(width, height, name)
  tiles = lambda: (array[window] for window in _tiles(height, width))
  return _from_tiles(tiles, array.dtype, np.empty((height, width, 3), np.uint8), name)


def _from_tiles(tiles: Callable[[], Iterator[np.ndarray]], dtype: np.dtype, out: np.ndarray, name: str) -> np.ndarray:
  """Fills `out` from tiles [h, w] or [h, w, 1 to 4], in the order of `_tiles`."""
  convert = _to_uint8(tiles, dtype, name)
  for window, tile in zip(_tiles(*out.shape[:2]), tiles()):
    tile = convert(tile.reshape(*tile.shape[:2], -1))
    channels = tile.shape[2]
    if channels in (2, 4):
      tile = _over_white(tile if channels == 4 else tile[..., [0, 0, 0, 1]])
    out[window] = tile  # a single channel is repeated
  return out


def _to_uint8(
  tiles: Callable[[], Iterator[np.ndarray]], dtype: np.dtype, name: str
) -> Callable[[np.ndarray], np.ndarray]:
  """Returns the conversion of a type to 8 bits. Raises UserError if values in `tiles` are out of range."""
  if dtype == np.uint8:
    return lambda tile: tile
  if dtype == np.bool_:
    return lambda tile: tile.astype(np.uint8) * 255
  if dtype == np.uint16:
    return lambda tile: ((tile.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 = 255 * 257
  if dtype.kind in 'iu':  # not np.integer, which includes timedelta64
    _check_range(tiles(), dtype, 255, name)
    return lambda tile: tile.astype(np.uint8)
  if dtype.kind == 'f':
    _check_range(tiles(), dtype, 1, name)
    return lambda tile: np.rint(np.clip(tile.astype(np.float32), 0, 1) * 255).astype(np.uint8)
  raise UserError(f'{name}: holds {dtype}: expected uint8, uint16, bool or floats from 0 to 1')


def _check_range(tiles: Iterator[np.ndarray], dtype: np.dtype, top: int, name: str) -> None:
  low, high = _range(tiles)
  slack = 0.01 * (top == 1)  # bicubic resizing overshoots a little
  if not (low >= -slack and high <= top + slack):  # NaN fails too
    expected = f'expected 0 to {top} (or use uint8, 0 to 255)'
    raise UserError(f'{name}: holds {dtype} from {low} to {high}; {expected}')


def _range(tiles: Iterator[np.ndarray]) -> tuple[Any, Any]:
  lows, highs = zip(*((tile.min(), tile.max()) for tile in tiles))
  return np.min(lows), np.max(highs)


def _tiles(height: int, width: int) -> Iterator[tuple[slice, slice]]:
  """Yields windows (rows, columns) that cover an image, each of at most _TILE pixels."""
  rows = max(1, _TILE // width)
  for top in range(0, height, rows):
    for left in range(0, width, _TILE):
      yield slice(top, min(top + rows, height)), slice(left, min(left + _TILE, width))


def _check_size(width: int, height: int, name: str, most_pixels: int | None = None) -> None:
  if width < 1 or height < 1:
    raise UserError(f'{name}: {width} x {height} pixels, expected at least 1 x 1')
  if width * height > (most_pixels or MAX_PIXELS):
    raise UserError(_too_many_pixels(name, most_pixels))


def _too_many_pixels(name: str, most_pixels: int | None) -> str:
  return f'{name}: more than {most_pixels or MAX_PIXELS:,} pixels; scale it down first'


def _over_white(rgba: np.ndarray) -> np.ndarray:
  """Composites uint8 [h, w, 4] with straight alpha over white."""
  color, alpha = rgba[..., :3].astype(np.uint32), rgba[..., 3:].astype(np.uint32)
  return ((color * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _reason(error: Exception) -> str:
  return printable(getattr(error, 'strerror', None) or str(error) or type(error).__name__)
