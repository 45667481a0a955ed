"""Point grids and crops of an image, laid out as in Meta's automatic mask generator."""

import itertools
import math

import numpy as np

Box = tuple[int, int, int, int]  # (x0, y0, x1, y1) in pixels of the image, x1 and y1 exclusive


def point_grid(per_side: int) -> np.ndarray:
  """Returns the centres of per_side x per_side equal cells, (x, y) on 0..1, row by row: f64 [per_side**2, 2]."""
  along = np.linspace(1 / (2 * per_side), 1 - 1 / (2 * per_side), per_side)
  x, y = np.meshgrid(along, along)
  return np.stack([x, y], -1).reshape(-1, 2)


def point_grids(per_side: int, layers: int, downscale: int) -> list[np.ndarray]:
  """Returns grids for the image and the crops of each layer; each layer has `downscale` times fewer points per side."""
  return [point_grid(int(per_side / downscale**layer)) for layer in range(layers + 1)]


def crop_boxes(size: tuple[int, int], layers: int, overlap_ratio: float) -> list[tuple[Box, int]]:
  """Returns the boxes of the image and of the crops, with their layers: 4 crops in layer 1, 16 in layer 2, ...

  Args:
    size: height and width of the image.
    layers: number of layers of crops.
    overlap_ratio: overlap of the crops in layer 1, as a share of the image's short side; halved in each later layer.
  """
  height, width = size
  boxes: list[tuple[Box, int]] = [((0, 0, width, height), 0)]
  for layer in range(1, layers + 1):
    count = 2**layer
    overlap = int(overlap_ratio * min(size) * (2 / count))
    crop_width, crop_height = (math.ceil((overlap * (count - 1) + side) / count) for side in (width, height))
    left, top = ([(side - overlap) * i for i in range(count)] for side in (crop_width, crop_height))
    for x0, y0 in itertools.product(left, top):
      boxes.append(((x0, y0, min(x0 + crop_width, width), min(y0 + crop_height, height)), layer))
  return boxes
