"""One image and its masks, read, checked and encoded: the work that is spread over the cores."""

import dataclasses
from collections.abc import Generator, Iterable
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np

from ditsam_jax.data.preparation.masks import MaskError, draw
from ditsam_jax.data.workers import map_ordered

# 4 KB for a mask of 640 x 480, beside 150 KB of JPEG. One bit a pixel would take a third of that, and
# run lengths as little, but each takes longer to decode, and reading is what is done often.
_MASK_OPTIONS = (cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE)
MOST_BYTES = 2**27  # of an image file; those of COCO have 160 kB

NEARLY_EQUAL = 0.95  # IoU of two masks from which on they are reported
_MOST_COMPARED = 300  # pairs of masks of an image


class ImageError(ValueError):
  """An image that cannot be taken; `kind` is one of problems.py."""

  def __init__(self, kind: str, what: str):
    super().__init__(what)
    self.kind = kind


class ReadImage(NamedTuple):
  """What the record stores, and what is checked against."""

  data: bytes  # of a file that OpenCV decodes
  height: int
  width: int
  digest: bytes = b''  # of the pixels, where images are compared


class Source(Protocol):
  """Where the bytes of an image come from; sent to worker processes."""

  def read(self) -> ReadImage:
    """Reads and checks. Raises ImageError."""
    ...


class Drawn(Protocol):
  """A mask that is not COCO's: from a file, say."""

  def draw(self, height: int, width: int) -> np.ndarray:
    """The mask, bool [height, width]. Raises MaskError."""
    ...


class PlannedMask(NamedTuple):
  """A mask to be drawn."""

  name: str  # for messages
  segmentation: Drawn | Any  # polygons or run lengths of COCO


@dataclasses.dataclass(frozen=True, slots=True)
class PlannedObject:
  """What some sentences refer to, with the masks to be drawn: one, several (their union is the target) or none."""

  object_id: int
  category: str
  expressions: tuple[str, ...]
  masks: tuple[PlannedMask, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class PlannedImage:
  """One record to be: what a worker process is sent."""

  source: Source
  image_id: int
  objects: tuple[PlannedObject, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class EncodedImage:
  """The file's bytes, and a PNG mask for each object that could be drawn. No bytes: left out."""

  planned: PlannedImage
  image: bytes
  objects: tuple[tuple[PlannedObject, bytes], ...]
  problems: tuple[tuple[str, str], ...]  # kind and what
  height: int = 0
  width: int = 0
  areas: tuple[int, ...] = ()  # of the masks, in pixels
  alike: tuple[tuple[int, int], ...] = ()  # pairs of objects with nearly equal masks and different sentences
  digest: bytes = b''


def encode(planned: PlannedImage) -> EncodedImage:
  """Reads and checks one image and draws its masks; what is wrong is returned, never raised."""
  try:
    read = planned.source.read()
  except ImageError as error:  # masks wait for the image: its size is what bounds theirs
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
  )


def encode_all(images: Iterable[PlannedImage], processes: int) -> Generator[EncodedImage, None, None]:
  """`encode` of each, in order, by that many worker processes; 0 takes this one."""
  return map_ordered(encode, images, processes)


def _mask(one: PlannedObject, height: int, width: int) -> tuple[np.ndarray | None, list[tuple[str, str]]]:
  """The union of the object's masks, and what is wrong with them."""
  union, faults = np.zeros((height, width), bool), []
  for name, segmentation in one.masks:
    try:
      drawn = segmentation.draw(height, width) if hasattr(segmentation, 'draw') else draw(segmentation, height, width)
      union |= drawn
    except MaskError as error:
      faults.append((error.kind, f'{name} ({error})'))
  return (None if faults else union), faults


def _alike(objects: list[PlannedObject], masks: list[np.ndarray]) -> tuple[tuple[int, int], ...]:
  """Pairs of objects whose masks have an IoU of at least NEARLY_EQUAL, though they have different sentences."""
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
