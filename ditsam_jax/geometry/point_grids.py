"""Point grids and crops of an image, as Meta's automatic mask generation lays them out."""

import itertools
import math

import numpy as np

Box = tuple[int, int, int, int]  # (x0, y0, x1, y1) in pixels of the image, x1 and y1 excluded


def point_grid(per_side: int) -> np.ndarray:
  """The centres of per_side x per_side equal cells, (x, y) on 0..1, row by row: f64 [per_side**2, 2]."""
  along = np.linspace(1 / (2 * per_side), 1 - 1 / (2 * per_side), per_side)
  x, y = np.meshgrid(along, along)
  return np.stack([x, y], -1).reshape(-1, 2)


def point_grids(per_side: int, layers: int, downscale: int) -> list[np.ndarray]:
  """A grid for the image and one for the crops of each layer, each with `downscale` times fewer points a side."""
  return [point_grid(int(per_side / downscale**layer)) for layer in range(layers + 1)]


def crop_boxes(size: tuple[int, int], layers: int, overlap_ratio: float) -> list[tuple[Box, int]]:
  """The image, then the crops of each layer, with their layer: 4 in layer 1, 16 in layer 2, ...

  Args:
    size: height and width of the image.
    layers: of crops.
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
