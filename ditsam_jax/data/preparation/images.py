"""Reads, checks and encodes an image and its masks; runs in worker processes."""

import dataclasses
from collections.abc import Generator, Iterable
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np

from ditsam_jax.data.preparation.masks import MaskError, draw
from ditsam_jax.data.workers import map_ordered

# A 640 x 480 mask takes 4 KB, next to 150 KB of JPEG. One bit per pixel or run lengths would take a third of that but
# decode more slowly, and masks are read far more often than written.
_MASK_OPTIONS = (cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE)
MOST_BYTES = 2**27  # maximum size of an image file; COCO's have 160 kB

NEARLY_EQUAL = 0.95  # minimum IoU of two masks reported as nearly equal
_MOST_COMPARED = 300  # maximum number of mask pairs compared per image


class ImageError(ValueError):
  """Raised for an unusable image; `kind` is a constant of problems.py."""

  def __init__(self, kind: str, what: str):
    super().__init__(what)
    self.kind = kind


class ReadImage(NamedTuple):
  """An image as stored in a record, with its size."""

  data: bytes  # a file that OpenCV decodes
  height: int
  width: int
  digest: bytes = b''  # of the pixels, if images are compared
  orientation_unsure: bool = False  # whether the annotated size fits it rotated by EXIF, as it is here, and unrotated


class Source(Protocol):
  """Source of an image's bytes; sent to worker processes."""

  def read(self) -> ReadImage:
    """Reads and checks the image. Raises ImageError."""
    ...


class Drawn(Protocol):
  """A mask that draws itself, for example from a file."""

  def draw(self, height: int, width: int) -> np.ndarray:
    """Returns the mask, bool [height, width]. Raises MaskError."""
    ...


class PlannedMask(NamedTuple):
  """A mask to draw."""

  name: str  # for messages
  segmentation: Drawn | Any  # polygons or run lengths of COCO


@dataclasses.dataclass(frozen=True, slots=True)
class PlannedObject:
  """The target of some sentences, with its masks to draw: one, several (the target is their union) or none."""

  object_id: int
  category: str
  expressions: tuple[str, ...]
  masks: tuple[PlannedMask, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class PlannedImage:
  """A record to encode; sent to worker processes."""

  source: Source
  image_id: int
  objects: tuple[PlannedObject, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class EncodedImage:
  """The file's bytes and a PNG mask for each drawable object. Without bytes, the image is left out."""

  planned: PlannedImage
  image: bytes
  objects: tuple[tuple[PlannedObject, bytes], ...]
  problems: tuple[tuple[str, str], ...]  # kind and example
  height: int = 0
  width: int = 0
  areas: tuple[int, ...] = ()  # of the masks, in pixels
  alike: tuple[tuple[int, int], ...] = ()  # pairs of objects with nearly equal masks and different sentences
  digest: bytes = b''
  orientation_unsure: bool = False


def encode(planned: PlannedImage) -> EncodedImage:
  """Reads and checks one image and draws its masks. Returns problems instead of raising."""
  try:
    read = planned.source.read()
  except ImageError as error:  # masks are not drawn: the image's size bounds theirs
    return EncodedImage(planned, b'', (), ((error.kind, str(error)),))
  found: list[tuple[str, str]] = []
  objects, masks = [], []
  for one in planned.objects:
    mask, faults = _mask(one, read.height, read.width)
    found += faults
    if mask is not None:
      objects.append((one, cv2.imencode('.png', mask.view(np.uint8) * 255, _MASK_OPTIONS)[1].tobytes()))
      masks.append(mask)
  return EncodedImage(
    planned,
    read.data if objects else b'',
    tuple(objects),
    tuple(found),
    read.height,
    read.width,
    tuple(int(np.count_nonzero(mask)) for mask in masks),
    _alike([one for one, _ in objects], masks),
    read.digest,
    read.orientation_unsure,
  )


def encode_all(images: Iterable[PlannedImage], processes: int) -> Generator[EncodedImage, None, None]:
  """Yields `encode` of each image in order, using worker processes; 0 uses the current process."""
  return map_ordered(encode, images, processes)


def _mask(one: PlannedObject, height: int, width: int) -> tuple[np.ndarray | None, list[tuple[str, str]]]:
  """Returns the union of the object's masks, and problems."""
  union, faults = np.zeros((height, width), bool), []
  for name, segmentation in one.masks:
    try:
      drawn = segmentation.draw(height, width) if hasattr(segmentation, 'draw') else draw(segmentation, height, width)
      union |= drawn
    except MaskError as error:
      faults.append((error.kind, f'{name} ({error})'))
  return (None if faults else union), faults


def _alike(objects: list[PlannedObject], masks: list[np.ndarray]) -> tuple[tuple[int, int], ...]:
  """Returns pairs of objects with different sentences but a mask IoU of at least NEARLY_EQUAL."""
  areas = [np.count_nonzero(mask) for mask in masks]
  order = sorted((index for index, area in enumerate(areas) if area), key=areas.__getitem__)
  pairs, compared = [], 0
  for place, first in enumerate(order):
    for second in order[place + 1 :]:
      if areas[first] < NEARLY_EQUAL * areas[second] or compared == _MOST_COMPARED:
        break
      if set(objects[first].expressions) == set(objects[second].expressions):
        continue
      compared += 1
      both = np.count_nonzero(masks[first] & masks[second])
      if both >= NEARLY_EQUAL * (areas[first] + areas[second] - both):
        pairs.append((min(first, second), max(first, second)))
  return tuple(sorted(pairs))
