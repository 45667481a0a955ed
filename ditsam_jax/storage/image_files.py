"""Images in: any picture becomes uint8 RGB [h, w, 3]. Images out: PNG files that are whole or absent."""

import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from ditsam_jax.errors import UserError
from ditsam_jax.storage.files import written_whole

# What people's pictures come in. Pillow's other readers stay shut: some start programs (EPS).
FORMATS = ('PNG', 'JPEG', 'WEBP', 'GIF', 'BMP', 'DIB', 'TIFF', 'PPM', 'ICO', 'JPEG2000', 'AVIF')
MAX_PIXELS = 89_478_485  # Pillow's own bound for "could be a decompression bomb": 1 GiB / 4 / 3

# `warnings.catch_warnings` changes the state of the whole process, so one thread at a time.
_header_lock = threading.Lock()


def read_image(source: str | os.PathLike | Image.Image | Any) -> np.ndarray:
  """Reads a picture as RGB.

  Transparent areas are laid over white. EXIF rotation is applied. Animations give their first frame.
  16-bit grey is scaled to 8 bits (65535 becomes 255).

  Args:
    source: a path, a PIL image, or an array [h, w], [h, w, 1], [h, w, 2] (grey, alpha), [h, w, 3] or
      [h, w, 4] (RGB, alpha). uint8 is 0..255, uint16 0..65535, bool and floats 0..1, other integers 0..255.

  Returns:
    uint8 [h, w, 3].

  Raises:
    UserError: the file is missing, not a picture, damaged, empty or too large; the array is none of these.
  """
  if isinstance(source, Image.Image):
    return _decoded(source, 'the PIL image')
  if isinstance(source, str | os.PathLike):
    return _read_file(source)
  if hasattr(source, '__array__'):
    return _from_array(np.asarray(source), 'the image array')
  raise UserError(f'an image of type {type(source).__name__}: expected a path, a PIL image or an array')


def write_png(path: str | os.PathLike, image: np.ndarray | Image.Image, *, notes: dict[str, str] | None = None) -> None:
  """Writes uint8 [h, w] or [h, w, 3] as PNG, with `notes` as its texts; bool becomes 0/255.

  The file appears under its name only once it is whole; missing folders are made.

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


def _read_file(source: str | os.PathLike) -> np.ndarray:
  name = f'image {os.fspath(source)!r}'
  try:
    path = Path(source)
    if not os.fspath(source):
      raise UserError(f'{name}: no name, expected an image file')
    if path.is_dir():
      raise UserError(f'{name}: a folder, expected an image file')
    if path.exists() and not path.is_file():
      raise UserError(f'{name}: a device or a pipe, expected an image file')
    with _open(path) as image:
      return _decoded(image, name)
  except FileNotFoundError as error:
    raise UserError(f'{name}: no such file') from error
  except UnidentifiedImageError as error:
    raise UserError(f'{name}: not an image, or damaged; expected {", ".join(FORMATS)}') from error
  except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
    raise UserError(f'{name}: more than {MAX_PIXELS:,} pixels; scale it down first') from error
  except (OSError, ValueError, SyntaxError, MemoryError) as error:
    reason = getattr(error, 'strerror', None) or error
    raise UserError(f'{name}: cannot be read ({reason})') from error


def _open(path: Path) -> Image.Image:
  with _header_lock, warnings.catch_warnings():
    warnings.simplefilter('error', Image.DecompressionBombWarning)
    return Image.open(path, formats=FORMATS)


def _decoded(image: Image.Image, name: str) -> np.ndarray:
  """RGB pixels of a PIL image that may not have been read from its file yet."""
  _check_size(image.width, image.height, name)
  try:
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(('I', 'F')):
      return _from_array(_wide(image, name), name)
    if image.has_transparency_data:
      return _over_white(np.asarray(_to_mode(image, 'RGBA')))
    return np.array(_to_mode(image, 'RGB'))
  except UserError:
    raise
  except Exception as error:  # Pillow's decoders raise almost anything on damaged data
    raise UserError(f'{name}: damaged or cut short ({error}); get a whole copy') from error


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
  # Premultiplied grey has a way to plain grey only, and palettes with alpha to RGBA only.
  if image.mode == 'La':
    image = image.convert('LA')
  return image.convert(mode)


def _wide(image: Image.Image, name: str) -> np.ndarray:
  """Grey of more than 8 bits. Pillow keeps 16-bit files as `I;16` or, in some formats, as 32-bit `I`."""
  pixels = np.asarray(image)
  if image.mode == 'F':
    return pixels
  if pixels.min() < 0 or pixels.max() > 65535:
    raise UserError(f'{name}: grey values {pixels.min()}..{pixels.max()}, expected 8 or 16 bits a pixel')
  return pixels.astype(np.uint16)


def _from_array(array: np.ndarray, name: str) -> np.ndarray:
  channels = array.shape[2] if array.ndim == 3 else 1
  if array.ndim not in (2, 3) or channels not in (1, 2, 3, 4):
    raise UserError(f'{name}: shape {array.shape}: expected [h, w] or [h, w, channels] with 1 to 4 channels')
  _check_size(array.shape[1], array.shape[0], name)
  array = _to_uint8(array, name).reshape(*array.shape[:2], channels)
  if channels == 4:
    return _over_white(array)
  if channels == 2:
    return _over_white(array[..., [0, 0, 0, 1]])
  return np.repeat(array, 3, axis=-1) if channels == 1 else array.copy()


def _to_uint8(array: np.ndarray, name: str) -> np.ndarray:
  if array.dtype == np.uint8:
    return array
  if array.dtype == bool:
    return array.astype(np.uint8) * 255
  if array.dtype == np.uint16:
    return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 = 255 * 257
  if np.issubdtype(array.dtype, np.integer):
    _check_range(array, 255, name)
    return array.astype(np.uint8)
  if np.issubdtype(array.dtype, np.floating):
    _check_range(array, 1, name)
    return np.rint(np.clip(array.astype(np.float32), 0, 1) * 255).astype(np.uint8)
  raise UserError(f'{name}: holds {array.dtype}: expected uint8, uint16, bool or floats from 0 to 1')


def _check_range(array: np.ndarray, top: int, name: str) -> None:
  low, high = array.min(), array.max()
  slack = 0.01 * (top == 1)  # resizing overshoots a little
  if not (low >= -slack and high <= top + slack):  # NaN fails too
    expected = f'expected 0 to {top} (or use uint8, 0 to 255)'
    raise UserError(f'{name}: holds {array.dtype} from {low} to {high}; {expected}')


def _check_size(width: int, height: int, name: str) -> None:
  if width < 1 or height < 1:
    raise UserError(f'{name}: {width} x {height} pixels, expected at least 1 x 1')


def _over_white(rgba: np.ndarray) -> np.ndarray:
  """Lays uint8 [h, w, 4] with straight alpha over white."""
  color, alpha = rgba[..., :3].astype(np.uint32), rgba[..., 3:].astype(np.uint32)
  return ((color * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
