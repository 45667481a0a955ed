"""One image file and its masks, read, checked and encoded: the work that is spread over the cores."""

import dataclasses
import io
import os
import warnings
from collections.abc import Generator, Iterable

import cv2
import numpy as np
from PIL import Image

from ditsam_jax.data.refcoco import annotations, problems
from ditsam_jax.data.refcoco.plan import PlannedImage, PlannedObject
from ditsam_jax.data.workers import map_ordered
from ditsam_jax.errors import UserError
from ditsam_jax.storage.files import read_bytes

# 4 KB for a mask of 640 x 480, beside 150 KB of JPEG. One bit a pixel would take a third of that, and
# run lengths as little, but each takes longer to decode, and reading is what is done often.
_MASK_OPTIONS = (cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE)
_MOST_BYTES = 2**27  # of an image file; those of COCO have 160 kB


@dataclasses.dataclass(frozen=True, slots=True)
class EncodedImage:
  """The file's bytes as they are, and a PNG mask for each object that could be drawn. No bytes: left out."""

  planned: PlannedImage
  image: bytes
  objects: tuple[tuple[PlannedObject, bytes], ...]
  problems: tuple[tuple[str, str], ...]  # kind and what


def encode(planned: PlannedImage) -> EncodedImage:
  """Reads and checks one image and draws its masks; what is wrong is returned, never raised."""
  data, trouble = _read(planned)
  if trouble:  # masks wait for the image: its size is what bounds theirs
    return EncodedImage(planned, b'', (), (trouble,))
  found: list[tuple[str, str]] = []
  objects = []
  for one in planned.objects:
    mask, faults = _mask(one, planned.height, planned.width)
    found += faults
    if mask is not None:
      objects.append((one, mask))
  return EncodedImage(planned, data if objects else b'', tuple(objects), tuple(found))


def encode_all(images: Iterable[PlannedImage], processes: int) -> Generator[EncodedImage, None, None]:
  """`encode` of each, in order, by that many worker processes; 0 takes this one."""
  return map_ordered(encode, images, processes)


def _read(planned: PlannedImage) -> tuple[bytes, tuple[str, str] | None]:
  name = os.path.basename(planned.file)
  try:
    data = read_bytes(planned.file, most_bytes=_MOST_BYTES)
  except UserError as error:
    missing = isinstance(error.__cause__, FileNotFoundError)
    return b'', (problems.MISSING_FILE, name) if missing else (problems.UNREADABLE, str(error))
  try:
    # Pillow notices files that are cut short, which OpenCV fills with grey. An eighth of the size goes through
    # the whole file too, in half the time.
    with (
      warnings.catch_warnings(action='ignore'),  # Pillow's remarks on sizes and tags
      Image.open(io.BytesIO(data), formats=('JPEG',)) as picture,
    ):
      width, height = picture.size
      if (height, width) != (planned.height, planned.width):  # before memory is taken for it
        return b'', (problems.OTHER_SIZE, f'{name} ({width} x {height}, not {planned.width} x {planned.height})')
      picture.draft('L', (width // 8, height // 8))
      picture.load()
  except Exception as error:  # Pillow's decoders raise almost anything on damaged data
    reason = 'no JPEG' if not data.startswith(b'\xff\xd8') else str(error).split('\n')[0]
    return b'', (problems.UNREADABLE, f'{name} ({reason})')
  # Whatever Pillow can read, training reads with OpenCV.
  if cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_GRAYSCALE_8) is None:
    return b'', (problems.UNREADABLE, f'{name} (by OpenCV)')
  return data, None


def _mask(one: PlannedObject, height: int, width: int) -> tuple[bytes | None, list[tuple[str, str]]]:
  """The union of the ref's masks as PNG, and what is wrong with them."""
  union, faults = np.zeros((height, width), bool), []
  for annotation_id, segmentation in zip(one.annotation_ids, one.segmentations):
    try:
      union |= annotations.draw(segmentation, height, width)
    except annotations.MaskError as error:
      faults.append((error.kind, f'annotation {annotation_id} of ref {one.ref_id} ({error})'))
  if faults:
    return None, faults
  return cv2.imencode('.png', union.view(np.uint8) * 255, _MASK_OPTIONS)[1].tobytes(), []
