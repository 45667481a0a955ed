"""Users' images, decoded as in prediction; files are stored unchanged if OpenCV decodes the same pixels."""

import dataclasses
import hashlib
import io
import warnings

import cv2
import numpy as np
from PIL import Image

from ditsam_jax.data.own.entries import Packed
from ditsam_jax.data.preparation import problems
from ditsam_jax.data.preparation.images import MOST_BYTES, ImageError, ReadImage
from ditsam_jax.errors import UserError
from ditsam_jax.storage.files import read_bytes
from ditsam_jax.storage.image_files import read_encoded
from ditsam_jax.terminal import printable

_JPEG = b'\xff\xd8'  # also starts cameras' MPO files
_QUICK = (cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE)


@dataclasses.dataclass(frozen=True, slots=True)
class Picture:
  """An image file of any format, or an image inside a Parquet file.

  EXIF orientation is applied, as in viewers, unless the annotated size fits only a JPEG's stored, unrotated pixels.
  """

  place: str | Packed
  name: str  # for messages
  size: tuple[int, int] | None = None  # annotated height and width

  def read(self) -> ReadImage:
    """Returns the bytes to store. Raises ImageError."""
    data = self._bytes()
    name = printable(self.name)
    try:
      pixels, plain, unsure = _decoded(data, name, self.size)
    except UserError as error:
      raise ImageError(problems.UNREADABLE, str(error)) from error
    height, width = pixels.shape[:2]
    if self.size and self.size != (height, width):
      what = f'{name} ({width} x {height}, not {self.size[1]} x {self.size[0]})'
      raise ImageError(problems.OTHER_SIZE, what)
    digest = hashlib.blake2b(np.array(pixels.shape).tobytes(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    if not (plain and _opencv_agrees(data, pixels)):
      data = cv2.imencode('.png', cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), _QUICK)[1].tobytes()
    return ReadImage(data, height, width, digest.digest(), unsure)

  def _bytes(self) -> bytes:
    if isinstance(self.place, Packed):
      from ditsam_jax.data.own.parquet import packed_bytes

      return packed_bytes(self.place)
    try:
      return read_bytes(self.place, most_bytes=MOST_BYTES)
    except UserError as error:
      missing = isinstance(error.__cause__, FileNotFoundError)
      kind, what = (problems.MISSING_FILE, self.name) if missing else (problems.UNREADABLE, str(error))
      raise ImageError(kind, what) from error


def _decoded(data: bytes, name: str, size: tuple[int, int] | None) -> tuple[np.ndarray, bool, bool]:
  """Returns the pixels, uint8 [h, w, 3], and two flags.

  They are whether the file may be stored unchanged if OpenCV agrees, and whether `size` fits the image rotated as well
  as unrotated.
  """
  plain, stored = False, None  # height and width of the pixels in the file, if EXIF turns them
  try:
    with warnings.catch_warnings(action='ignore'), Image.open(io.BytesIO(data), formats=('JPEG', 'PNG')) as picture:
      # For PNG, reading EXIF would decode the file; `_opencv_agrees` compares pixels.
      if data.startswith(_JPEG) and picture.getexif().get(0x0112, 1) in range(2, 9):
        stored = picture.height, picture.width
      plain = picture.mode in ('RGB', 'L')
  except Exception:  # another format, or damaged, which `read_encoded` reports
    pass
  pixels = read_encoded(data, name)
  if stored is None:
    return pixels, plain, False
  if size != stored or size == pixels.shape[:2]:
    return pixels, False, size == stored
  pixels = _opencv(data)
  if pixels is None:
    raise UserError(f'{name}: cannot be read (by OpenCV)')
  return pixels, plain, False


def _opencv_agrees(data: bytes, pixels: np.ndarray) -> bool:
  """Returns whether OpenCV, used in training, decodes the same pixels; JPEG only has to decode, as decoders differ."""
  if data.startswith(_JPEG):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_GRAYSCALE_8) is not None
  return np.array_equal(_opencv(data), pixels)  # pyright: ignore[reportArgumentType]  # None equals nothing


def _opencv(data: bytes) -> np.ndarray | None:
  return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
