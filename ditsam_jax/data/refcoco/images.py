"""Reads and checks COCO's JPEG files, which are stored unchanged."""

import dataclasses
import io
import os
import warnings

import cv2
import numpy as np
from PIL import Image

from ditsam_jax.data.preparation import problems
from ditsam_jax.data.preparation.images import MOST_BYTES, ImageError, ReadImage
from ditsam_jax.errors import UserError
from ditsam_jax.storage.files import read_bytes


@dataclasses.dataclass(frozen=True, slots=True)
class CocoJpeg:
  """A JPEG file with its size in instances.json."""

  file: str
  height: int
  width: int

  def read(self) -> ReadImage:
    """Returns the file's bytes. Raises ImageError if it is missing, not a JPEG, truncated or has another size."""
    name = os.path.basename(self.file)
    try:
      data = read_bytes(self.file, most_bytes=MOST_BYTES)
    except UserError as error:
      missing = isinstance(error.__cause__, FileNotFoundError)
      kind, what = (problems.MISSING_FILE, name) if missing else (problems.NO_JPEG, str(error))
      raise ImageError(kind, what) from error
    try:
      # Pillow detects truncated files, which OpenCV fills with grey. Decoding at an eighth of the size also reads the
      # whole file, in half the time.
      with (
        warnings.catch_warnings(action='ignore'),  # Pillow warns about sizes and tags
        Image.open(io.BytesIO(data), formats=('JPEG',)) as picture,
      ):
        width, height = picture.size
        if (height, width) != (self.height, self.width):  # before pixels are allocated
          what = f'{name} ({width} x {height}, not {self.width} x {self.height})'
          raise ImageError(problems.OTHER_SIZE, what)
        picture.draft('L', (width // 8, height // 8))
        picture.load()
    except (ImageError, MemoryError):
      raise
    except Exception as error:  # Pillow's decoders raise almost anything on damaged data
      reason = 'no JPEG' if not data.startswith(b'\xff\xd8') else str(error).split('\n')[0]
      raise ImageError(problems.NO_JPEG, f'{name} ({reason})') from error
    # Training decodes with OpenCV.
    if cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_GRAYSCALE_8) is None:
      raise ImageError(problems.NO_JPEG, f'{name} (by OpenCV)')
    return ReadImage(data, self.height, self.width)
