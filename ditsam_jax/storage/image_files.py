"""Reads any image format as uint8 RGB [h, w, 3]; writes PNG and JPEG files atomically.

Memory while reading: Pillow keeps 1 to 4 bytes a pixel, and what leaves takes 3 more; both are converted a tile at a
time. So the peak is 1.5 to 3 times the result for most files, 4 times for progressive JPEG and for TIFF in one strip.
Pillow's decoders of WebP, JPEG 2000 and AVIF hold copies of their own, and reach 8 times. Metadata have a limit as well.
"""

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
from ditsam_jax.storage.files import open_regular, written_whole
from ditsam_jax.terminal import printable

# What people's pictures come in. Pillow's other readers stay shut: some start programs (EPS).
FORMATS = ('PNG', 'JPEG', 'WEBP', 'GIF', 'BMP', 'DIB', 'TIFF', 'PPM', 'ICO', 'JPEG2000', 'AVIF')

_MOST_FILE = 2**36  # bytes; what is read of them is bounded below
_MOST_METADATA = 2**26  # bytes that a decoder may read beside pixels: text, profiles, tags, thumbnails
_MOST_JPEG_METADATA = 2**24  # which Pillow joins piece by piece, in quadratic time
_MOST_READS = 20_000  # of a header, for the same reason: GIF's comments
_MOST_BYTES_A_PIXEL = 16
_TILE = 2**18  # pixels converted at once

# `warnings.catch_warnings` changes the state of the whole process, so one thread at a time.
_header_lock = threading.Lock()


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
    UserError: the file is missing, not an image, damaged, empty or too large; the array is none of the above.
  """
  if isinstance(source, Image.Image):
    return _pixels(source, 'the PIL image')
  if isinstance(source, str | os.PathLike):
    return _read_file(source)
  if hasattr(source, '__array__'):
    return _from_array(np.asarray(source), 'the image array')
  raise UserError(f'an image of type {type(source).__name__}: expected a path, a PIL image or an array')


def write_png(path: str | os.PathLike, image: np.ndarray | Image.Image, *, notes: dict[str, str] | None = None) -> None:
  """Writes uint8 [h, w] or [h, w, 3] as PNG, with `notes` as its texts; bool becomes 0/255.

  The file is written atomically; missing folders are created.

  Raises:
    UserError: the file cannot be written.
  """
  if not isinstance(image, Image.Image):
    image = np.asarray(image)
    image = Image.fromarray(image.astype(np.uint8) * 255 if image.dtype == bool else image)
  texts = PngImagePlugin.PngInfo()
  for name, text in (notes or {}).items():
    texts.add_text(name, text)
  _write(Path(path), lambda unfinished: image.save(unfinished, format='PNG', compress_level=4, pnginfo=texts))


def write_photo_png(path: str | os.PathLike, pixels: np.ndarray) -> None:
  """Writes uint8 [h, w, 3] as `write_png` does, in a third of the time; files of photos have the same size.

  Raises:
    UserError: the file cannot be written.
  """
  import cv2  # imported late: whoever reads images only does without

  quick = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
  encoded = cv2.imencode('.png', cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), quick)[1]
  _write(Path(path), lambda unfinished: unfinished.write_bytes(encoded.tobytes()))


def _write(path: Path, write: Callable[[Path], Any]) -> None:
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as unfinished:
      write(unfinished)
  except (OSError, ValueError) as error:  # ValueError: a name that no file can have
    reason = getattr(error, 'strerror', None) or error
    raise UserError(f'cannot write {str(path)!r}: {reason}; choose another output') from error


class _Metered(io.BufferedReader):
  """A file of which decoders may read only so much: what is no pixel they keep in memory, whatever its size."""

  def __init__(self, file: io.RawIOBase | io.BytesIO, size: int, name: str):
    super().__init__(file)  # pyright: ignore[reportArgumentType]  # of which it asks what BytesIO has
    self._name, self._size = name, size
    self._most = _MOST_JPEG_METADATA if self.peek(2).startswith(b'\xff\xd8') else _MOST_METADATA
    self.allow(self._most, _MOST_READS)

  def allow(self, read: int, calls: float = float('inf')) -> None:
    """How many bytes may be read from now on, in how many calls."""
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
  return _read(io.BytesIO(data), len(data), name)


def _read_file(source: str | os.PathLike) -> np.ndarray:
  name = f"image '{printable(os.fspath(source))}'"
  if not os.fspath(source):
    raise UserError(f'{name}: no name, expected an image file')
  file = open_regular(source, most_bytes=_MOST_FILE, name=name)
  size = os.fstat(file.fileno()).st_size
  return _read(file.detach(), size, name)


def _read(raw: io.RawIOBase | io.BytesIO, size: int, name: str) -> np.ndarray:
  try:
    with _Metered(raw, size, name) as file, _open(file, name) as image:
      _check_size(image.width, image.height, name)
      _check_blocks(image, name)
      file.allow(_MOST_METADATA + _MOST_BYTES_A_PIXEL * image.width * image.height)
      return _pixels(image, name, ours=True)
  except UnidentifiedImageError as error:
    raise UserError(f'{name}: not an image, or damaged; expected {", ".join(FORMATS)}') from error
  except UserError:
    raise
  except Exception as error:  # Pillow's readers of headers raise almost anything on damaged data
    raise UserError(f'{name}: cannot be read ({_reason(error)})') from error


def _open(file: io.BufferedReader, name: str) -> Image.Image:
  """Reads the header only (of ICO all)."""
  try:
    with _header_lock, warnings.catch_warnings():
      warnings.simplefilter('ignore')  # Pillow's remarks on odd tags
      warnings.simplefilter('error', Image.DecompressionBombWarning)
      return Image.open(file, formats=FORMATS)
  except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
    raise UserError(_too_many_pixels(name)) from error


def _check_blocks(image: Image.Image, name: str) -> None:
  """TIFF is decoded a block at a time, and a block may be far larger than the image."""
  tags = getattr(image, 'tag_v2', {})
  width, height = tags.get(322, 0), tags.get(323, 0)
  most = 4 * image.width * image.height + 2**22
  if not (isinstance(width, int) and isinstance(height, int) and width * height <= most):
    raise UserError(f'{name}: {image.width} x {image.height} pixels in tiles of {width} x {height}; save it as PNG')


def _pixels(image: Image.Image, name: str, *, ours: bool = False) -> np.ndarray:
  """RGB pixels of a PIL image that may not have been read from its file yet. `ours`: nobody needs it after."""
  _check_size(image.width, image.height, name)
  try:
    image.load()
    turn = image.getexif().get(0x0112, 1)
    _check_size(image.width, image.height, name)
    pixels = _converted(image, name)
    if ours:
      image.close()  # before a turned copy is made
    return _TURNED.get(turn, np.ascontiguousarray)(pixels)
  except UserError:
    raise
  except Exception as error:  # Pillow's decoders raise almost anything on damaged data
    raise UserError(f'{name}: damaged or truncated ({_reason(error)}); get a complete copy') from error


# What EXIF's orientations ask for.
_TURNED = {
  2: lambda pixels: np.ascontiguousarray(pixels[:, ::-1]),
  3: lambda pixels: np.ascontiguousarray(pixels[::-1, ::-1]),
  4: lambda pixels: np.ascontiguousarray(pixels[::-1]),
  5: lambda pixels: np.ascontiguousarray(pixels.swapaxes(0, 1)),
  6: lambda pixels: np.ascontiguousarray(np.rot90(pixels, -1)),
  7: lambda pixels: np.ascontiguousarray(pixels[::-1, ::-1].swapaxes(0, 1)),
  8: lambda pixels: np.ascontiguousarray(np.rot90(pixels)),
}


def _converted(image: Image.Image, name: str) -> np.ndarray:
  """Straight or premultiplied, grey, palette, 8 to 32 bits: RGB, a tile at a time."""
  out = np.empty((image.height, image.width, 3), np.uint8)
  boxes = [(x.start, y.start, x.stop, y.stop) for y, x in _tiles(*out.shape[:2])]
  if image.mode.startswith(('I', 'F')):
    tiles = lambda: (np.asarray(image.crop(box)) for box in boxes)
    if image.mode == 'F':
      return _from_tiles(tiles, np.dtype(np.float32), out, name)
    low, high = _range(tiles())
    if low < 0 or high > 65535:
      raise UserError(f'{name}: grey values {low}..{high}, expected 8 or 16 bits a pixel')
    return _from_tiles(lambda: (tile.astype(np.uint16) for tile in tiles()), np.dtype(np.uint16), out, name)
  for (y, x), box in zip(_tiles(*out.shape[:2]), boxes):
    tile = image.crop(box)
    if image.has_transparency_data:
      out[y, x] = _over_white(np.asarray(_to_mode(tile, 'RGBA')))
    else:
      out[y, x] = np.asarray(_to_mode(tile, 'RGB'))
  return out


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
  # Premultiplied grey has a way to plain grey only, and palettes with alpha to RGBA only.
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
  """Fills `out` from tiles [h, w] or [h, w, 1 to 4] of numbers, in the order of `_tiles`."""
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
  """How numbers of a type become 8 bits. Raises UserError where those of `tiles` are not in its range."""
  if dtype == np.uint8:
    return lambda tile: tile
  if dtype == np.bool_:
    return lambda tile: tile.astype(np.uint8) * 255
  if dtype == np.uint16:
    return lambda tile: ((tile.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 = 255 * 257
  if dtype.kind in 'iu':  # NumPy counts time spans among its integers
    _check_range(tiles(), dtype, 255, name)
    return lambda tile: tile.astype(np.uint8)
  if dtype.kind == 'f':
    _check_range(tiles(), dtype, 1, name)
    return lambda tile: np.rint(np.clip(tile.astype(np.float32), 0, 1) * 255).astype(np.uint8)
  raise UserError(f'{name}: holds {dtype}: expected uint8, uint16, bool or floats from 0 to 1')


def _check_range(tiles: Iterator[np.ndarray], dtype: np.dtype, top: int, name: str) -> None:
  low, high = _range(tiles)
  slack = 0.01 * (top == 1)  # resizing overshoots a little
  if not (low >= -slack and high <= top + slack):  # NaN fails too
    expected = f'expected 0 to {top} (or use uint8, 0 to 255)'
    raise UserError(f'{name}: holds {dtype} from {low} to {high}; {expected}')


def _range(tiles: Iterator[np.ndarray]) -> tuple[Any, Any]:
  lows, highs = zip(*((tile.min(), tile.max()) for tile in tiles))
  return np.min(lows), np.max(highs)


def _tiles(height: int, width: int) -> Iterator[tuple[slice, slice]]:
  """Windows of rows and columns that cover an image, each of at most _TILE pixels."""
  rows = max(1, _TILE // width)
  for top in range(0, height, rows):
    for left in range(0, width, _TILE):
      yield slice(top, min(top + rows, height)), slice(left, min(left + _TILE, width))


def _check_size(width: int, height: int, name: str) -> None:
  if width < 1 or height < 1:
    raise UserError(f'{name}: {width} x {height} pixels, expected at least 1 x 1')
  if width * height > MAX_PIXELS:
    raise UserError(_too_many_pixels(name))


def _too_many_pixels(name: str) -> str:
  return f'{name}: more than {MAX_PIXELS:,} pixels; scale it down first'


def _over_white(rgba: np.ndarray) -> np.ndarray:
  """Lays uint8 [h, w, 4] with straight alpha over white."""
  color, alpha = rgba[..., :3].astype(np.uint32), rgba[..., 3:].astype(np.uint32)
  return ((color * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _reason(error: Exception) -> str:
  return printable(getattr(error, 'strerror', None) or str(error) or type(error).__name__)
