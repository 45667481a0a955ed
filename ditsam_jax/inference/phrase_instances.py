"""The single objects that a phrase refers to.

A sentence gives one mask of everything it names; a point gives one object. Points inside the sentence's mask propose
objects, and those mostly covered by the mask are returned.
"""

import dataclasses
import functools

import cv2
import numpy as np

from ditsam_jax.geometry.masks import decode_rle, encode_rle, shares_inside
from ditsam_jax.geometry.point_grids import Box
from ditsam_jax.inference.framing import Framed
from ditsam_jax.inference.mask_records import Found, bounds
from ditsam_jax.inference.results import Prediction

# Chosen on the shapes validation split; benchmarks/phrases.py measures the result.
COVERED = 0.6  # share of an object's pixels in the sentence's mask
_SAME = 0.5  # share of a mask inside another one, above which they show the same object
_CERTAINTY = 8  # masks rank by predicted IoU to this power times area: twice the area outweighs 8 % less predicted IoU
# A piece is as wide as the largest disc inside it. Radius in pixels of the sentence's mask before it is enlarged:
_THINNEST_PIECE = 1.0  # without any object; thinner ones are noise
_THINNEST_REST = 2.0  # of a piece with objects; thinner ones are edges that two masks draw differently


@dataclasses.dataclass(frozen=True, eq=False)
class Named:
  """What a phrase names in an image.

  Attributes:
    mask: the sentence's mask, bool [h, w].
    score: its predicted IoU.
    stability: its stability, see SamAutomaticMaskGenerator.
    pixel: side of a pixel of the model's logits, in pixels of the image.
  """

  mask: np.ndarray
  score: float
  stability: float
  pixel: float

  @classmethod
  def of(cls, prediction: Prediction, framed: Framed, threshold: float, offset: float) -> 'Named':
    """From the prediction of a sentence; `threshold` and `offset` of the stability are logits."""
    [logits] = prediction.logits
    inner, outer = (np.count_nonzero(logits > limit) for limit in (threshold + offset, threshold - offset))
    pixel = framed.config.image_size / (4 * framed.config.grid) / float(framed.scale.max())
    return cls(prediction.mask, prediction.score, inner / max(outer, 1), pixel)

  def points(self, box: Box, grid: np.ndarray) -> np.ndarray:
    """Returns the points of a crop's grid that lie in the mask, (x, y) in pixels of the crop, f64 [N, 2].

    For the whole image, adds a point in the middle of each piece of the mask, because small pieces may lie between the
    points of the grid.
    """
    x0, y0, x1, y1 = box
    x, y = np.minimum(grid.astype(int), (x1 - x0 - 1, y1 - y0 - 1)).T
    inside = grid[self.mask[y + y0, x + x0]]
    if (y1 - y0, x1 - x0) != self.mask.shape:
      return inside
    return np.concatenate([inside, np.reshape([piece.point for piece in self._pieces], (-1, 2))])

  @functools.cached_property
  def _pieces(self) -> list['_Piece']:
    return _pieces(self.mask, _THINNEST_PIECE * self.pixel)

  def instances(self, found: list[Found], least_area: float) -> list[Found]:
    """Selects one mask per object, and adds the pieces of the sentence's mask that no object covers.

    Args:
      found: masks that the sentence's mask covers.
      least_area: minimum area of an added piece, in pixels.
    """
    objects = _disjoint(found)
    explained = np.zeros_like(self.mask)
    for each in objects:
      explained |= decode_rle(each.rle)
    _, labels = cv2.connectedComponents(self.mask.astype(np.uint8), connectivity=8)
    with_objects = set(np.unique(labels[explained]).tolist())
    height, width = self.mask.shape
    for piece in _pieces(self.mask & ~explained, _THINNEST_PIECE * self.pixel):
      is_rest = int(labels[piece.place]) in with_objects
      if piece.area < least_area or is_rest and piece.radius < _THINNEST_REST * self.pixel:
        continue
      mask = piece.drawn(self.mask.shape)
      objects.append(
        Found(
          encode_rle(mask), piece.area, bounds(mask), self.score, self.stability, piece.point, (0, 0, width, height)
        )
      )
    return objects


@dataclasses.dataclass(frozen=True, eq=False)
class _Piece:
  """A connected part of a mask.

  Attributes:
    left, top: position of `mask` in the image.
    mask: bool [h, w], cropped.
    place: row and column of the centre of the largest disc inside it, in the image.
    radius: the disc's, in pixels.
  """

  left: int
  top: int
  mask: np.ndarray
  place: tuple[int, int]
  radius: float

  @property
  def area(self) -> int:
    return int(np.count_nonzero(self.mask))

  @property
  def point(self) -> tuple[float, float]:
    """(x, y) of the disc's centre."""
    return float(self.place[1]), float(self.place[0])

  def drawn(self, size: tuple[int, ...]) -> np.ndarray:
    """Returns the piece in the image, bool [h, w]."""
    whole = np.zeros(size, bool)
    height, width = self.mask.shape
    whole[self.top : self.top + height, self.left : self.left + width] = self.mask
    return whole


def _pieces(mask: np.ndarray, thinnest: float) -> list[_Piece]:
  """Returns the connected parts of `mask`, bool [h, w], with a disc of that radius inside; corners connect."""
  pixels = mask.astype(np.uint8)
  count, labels, stats, _ = cv2.connectedComponentsWithStats(pixels, connectivity=8)
  padded = cv2.copyMakeBorder(pixels, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
  distances = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
  found = []
  for label in range(1, count):
    left, top, width, height = stats[label, :4].tolist()  # OpenCV's order
    window = slice(top, top + height), slice(left, left + width)
    part = labels[window] == label
    depths = np.where(part, distances[window], 0)
    row, column = np.unravel_index(depths.argmax(), depths.shape)
    if depths[row, column] >= thinnest:
      place = top + int(row), left + int(column)
      found.append(_Piece(left, top, part, place, float(depths[row, column])))
  return found


def _disjoint(found: list[Found]) -> list[Found]:
  """Drops masks that overlap a better one (a part, or a group), keeping the order."""
  shares = shares_inside([each.rle for each in found], [each.rle for each in found])
  same = np.maximum(shares, shares.T) > _SAME
  worth = np.array([max(each.score, 0.0) ** _CERTAINTY * each.area for each in found])
  chosen: list[int] = []
  for i in np.argsort(-worth, kind='stable').tolist():
    if not same[i, chosen].any():
      chosen.append(i)
  return [found[i] for i in sorted(chosen)]
