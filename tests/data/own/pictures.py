"""Images with one rectangle each, and their masks in every representation."""

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

SIZES = ((48, 64), (64, 48), (50, 50), (40, 80), (56, 56), (44, 70))  # height, width


@dataclasses.dataclass
class Own:
  """Images and masks in `root`/photos and `root`/masks, with their pixels."""

  root: Path
  pixels: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # by image name
  masks: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

  @property
  def photos(self) -> Path:
    return self.root / 'photos'

  def write_lines(self, rows: list, name: str = 'mine.jsonl') -> Path:
    file = self.root / name
    file.write_text(''.join((row if isinstance(row, str) else json.dumps(row)) + '\n' for row in rows))
    return file

  def arguments(self, annotations: Path, *more: str) -> list[str]:
    """Returns arguments of the prepare command."""
    return [
      '--name=mine',
      f'--annotations={annotations}',
      f'--images={self.photos}',
      f'--data-dir={self.root / "data"}',
      '--processes=0',
      *more,
    ]


def make(root: Path, number: int = 6) -> Own:
  """Writes PNG images 0.png, ... with one rectangle each, and masks/0.png, ... with values 0 and 255."""
  own = Own(root)
  own.photos.mkdir()
  (root / 'masks').mkdir()
  for index in range(number):
    height, width = SIZES[index % len(SIZES)]
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 3 % 256, y * 3 % 256, (x + y + 40 * index) % 256], -1).astype(np.uint8)
    top, left = 4 + index % 20, 6 + index % 9
    mask = np.zeros((height, width), bool)
    mask[top : top + 12, left : left + 20] = True
    pixels[mask] = (200, 30 * index % 256, 90)
    name = f'{index}.png'
    Image.fromarray(pixels).save(own.photos / name)
    Image.fromarray(mask.astype(np.uint8) * 255).save(root / 'masks' / name)
    own.pixels[name], own.masks[name] = pixels, mask
  return own


def polygon(mask: np.ndarray) -> list[list[float]]:
  """Returns the COCO polygon of a rectangle."""
  rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
  top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
  return [[float(value) for value in (left, top, right, top, right, bottom, left, bottom)]]


def compressed(mask: np.ndarray) -> dict:
  """Returns run lengths compressed by pycocotools."""
  runs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
  return {'size': list(mask.shape), 'counts': runs['counts'].decode()}


def uncompressed(mask: np.ndarray) -> dict:
  """Returns uncompressed run lengths, computed pixel by pixel."""
  counts, current, run = [], False, 0
  for pixel in mask.T.reshape(-1):
    if pixel != current:
      counts.append(run)
      current, run = pixel, 0
    run += 1
  return {'size': list(mask.shape), 'counts': counts + [run]}


def jpeg(pixels: np.ndarray) -> bytes:
  return cv2.imencode('.jpg', pixels[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, 95))[1].tobytes()
