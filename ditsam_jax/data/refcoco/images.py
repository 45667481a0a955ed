"""COCO's JPEG files: read, checked, and passed on as they are."""

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
  """A JPEG whose size instances.json knows."""

  file: str
  height: int
  width: int

  def read(self) -> ReadImage:
    """The file's bytes. Raises ImageError when it is missing, no JPEG, cut short or of another size."""
    name = os.path.basename(self.file)
    try:
      data = read_bytes(self.file, most_bytes=MOST_BYTES)
    except UserError as error:
      missing = isinstance(error.__cause__, FileNotFoundError)
      kind, what = (problems.MISSING_FILE, name) if missing else (problems.NO_JPEG, str(error))
      raise ImageError(kind, what) from error
    try:
      # Pillow notices files that are cut short, which OpenCV fills with grey. An eighth of the size goes through
      # the whole file too, in half the time.
      with (
        warnings.catch_warnings(action='ignore'),  # Pillow's remarks on sizes and tags
        Image.open(io.BytesIO(data), formats=('JPEG',)) as picture,
      ):
        width, height = picture.size
        if (height, width) != (self.height, self.width):  # before memory is taken for it
          what = f'{name} ({width} x {height}, not {self.width} x {self.height})'
          raise ImageError(problems.OTHER_SIZE, what)
        picture.draft('L', (width // 8, height // 8))
        picture.load()
    except ImageError:
      raise
    except Exception as error:  # Pillow's decoders raise almost anything on damaged data
      reason = 'no JPEG' if not data.startswith(b'\xff\xd8') else str(error).split('\n')[0]
      raise ImageError(problems.NO_JPEG, f'{name} ({reason})') from error
    # Whatever Pillow can read, training reads with OpenCV.
    if cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_GRAYSCALE_8) is None:
      raise ImageError(problems.NO_JPEG, f'{name} (by OpenCV)')
    return ReadImage(data, self.height, self.width)
