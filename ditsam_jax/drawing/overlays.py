"""Masks and prompts over images."""

import cv2
import numpy as np

PREDICTION_COLOUR, TRUTH_COLOUR = (255, 45, 120), (0, 190, 150)
_ON, _OFF, _BOX = (0, 200, 90), (235, 40, 40), (255, 220, 0)
_LIGHT, _DARK = (255, 255, 255), (0, 0, 0)
# Affine colour map [3, 4] of pixels outside the object: mixes colours with a grey half as bright, then darkens them.
_DIMMING = 0.82 * np.hstack([0.6 * np.eye(3) + 0.4 * np.full((3, 3), 0.5 / 3), np.full((3, 1), 18)])


def overlay(
  image: np.ndarray,
  mask: np.ndarray,
  *,
  colour: tuple[int, int, int] = PREDICTION_COLOUR,
  tint: float = 0.2,
) -> np.ndarray:
  """Tints and outlines the object and dims the rest towards grey; returns uint8 [h, w, 3].

  Args:
    image: uint8 [h, w, 3].
    mask: bool [h, w].
    colour: RGB colour of the tint and the outline.
    tint: strength; 0 leaves the object's pixels unchanged, 1 replaces them.
  """
  pixels = cv2.transform(image, _DIMMING)
  mask = mask.astype(np.uint8)
  left, top, width, height = cv2.boundingRect(mask)
  if not width:
    return pixels
  # From here on, only the object's bounding box and the outline around it change.
  box = slice(top, top + height), slice(left, left + width)
  cv2.copyTo(cv2.transform(image[box], _tinting(colour, tint)), mask[box], pixels[box])
  contours, _ = cv2.findContours(mask[box], cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(left, top))
  thickness = max(2, round(max(image.shape[:2]) / 256))
  # A light line under the coloured one keeps the outline visible on an object of the same colour.
  cv2.polylines(pixels, contours, True, (255, 255, 255), 2 * thickness, line_type(thickness))
  cv2.polylines(pixels, contours, True, colour, thickness, line_type(thickness))
  return pixels


def _tinting(colour: tuple[int, int, int], amount: float) -> np.ndarray:
  """Returns an affine colour map [3, 4] that mixes colours with `colour`."""
  return np.hstack([(1 - amount) * np.eye(3), amount * np.array(colour, np.float64)[:, None]])


def line_type(thickness: int) -> int:
  """Returns OpenCV's line type for a thickness."""
  # Antialiasing takes most of the time and is visible only in thin lines.
  return cv2.LINE_AA if thickness < 6 else cv2.LINE_8


def draw_prompt(
  pixels: np.ndarray,
  *,
  points: np.ndarray | None = None,
  labels: np.ndarray | None = None,
  box: np.ndarray | None = None,
) -> None:
  """Draws points and a box over an image, in place.

  Args:
    pixels: uint8 [h, w, 3].
    points: (x, y) in pixels, [N, 2].
    labels: 1 for points on the object, drawn as green discs with a plus; 0 for others, red squares with a minus; [N].
      None: all are on it.
    box: left, top, right, bottom in pixels, [4].
  """
  height, width = pixels.shape[:2]
  radius = max(3, round(0.012 * max(height, width)))
  thin = max(1, radius // 4)
  if box is not None:
    x0, y0, x1, y1 = _inside(box.reshape(2, 2), width, height).ravel().tolist()
    for colour, thickness in ((_DARK, 3 * thin), (_BOX, thin)):
      cv2.rectangle(pixels, (x0, y0), (x1, y1), colour, thickness)
  if points is None:
    return
  labels = np.ones(len(points)) if labels is None else labels
  for (x, y), label in zip(_inside(points, width, height).tolist(), labels):
    for colour, size in ((_DARK, radius + 2 * thin), (_LIGHT, radius + thin), (_ON if label else _OFF, radius)):
      if label:
        cv2.circle(pixels, (x, y), size, colour, -1, line_type(thin))
      else:
        cv2.rectangle(pixels, (x - size, y - size), (x + size, y + size), colour, -1)
    arm = round(0.6 * radius)
    cv2.line(pixels, (x - arm, y), (x + arm, y), _LIGHT, thin)
    if label:
      cv2.line(pixels, (x, y - arm), (x, y + arm), _LIGHT, thin)


def _inside(points: np.ndarray, width: int, height: int) -> np.ndarray:
  """Rounds points [N, 2] (x, y) to pixels, clipped to the picture."""
  return np.rint(np.clip(points, 0, (width - 1, height - 1))).astype(int)
