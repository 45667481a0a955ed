"""Crops of an image for automatic mask generation, each with its points and tiles."""

import numpy as np

from ditsam_jax.errors import UserError
from ditsam_jax.geometry.point_grids import Box, crop_boxes
from ditsam_jax.inference import mask_programs
from ditsam_jax.inference.framing import Framed, frame
from ditsam_jax.inference.mask_settings import MaskSettings
from ditsam_jax.models.config import DitSamConfig

_LARGEST_TILE = 512  # side in pixels


class Crop:
  """A crop of an image.

  Attributes:
    box: its box in the image.
    size: height and width.
    points: (x, y) in pixels of the crop, [N, 2].
    tiles: tiles of its own pixels.
  """

  def __init__(self, image: np.ndarray, box: Box, grid: np.ndarray, config: DitSamConfig, keep: bool):
    """`grid`: points on 0..1; `keep`: keep the model's input and its embedding for further phrases."""
    x0, y0, x1, y1 = self.box = box
    self.size = y1 - y0, x1 - x0
    self.points = grid * (x1 - x0, y1 - y0)
    self._pixels, self._config, self._kept = image[y0:y1, x0:x1], config, None
    framed = self.framed()
    self.tiles = mask_programs.tiles_of(*framed.own_size_operators(), tile_side(config))
    self._kept = framed if keep else None

  def framed(self) -> Framed:
    """Returns the crop as input of the model."""
    return self._kept or frame(self._pixels, self._config)

  def tiles_of(self, mask: np.ndarray) -> list[np.ndarray]:
    """Returns a mask of the image, bool [h, w], in the crop's tiles: bool [T, T] each, False outside the crop."""
    x0, y0, x1, y1 = self.box
    own, side, tiles = mask[y0:y1, x0:x1], tile_side(self._config), []
    for tile in self.tiles:
      part = np.zeros((side, side), bool)
      part[: tile.height, : tile.width] = own[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width]
      tiles.append(part)
    return tiles


def crops_of(image: np.ndarray, settings: MaskSettings, grids: list[np.ndarray], config: DitSamConfig) -> list[Crop]:
  """Returns the crops of an image, uint8 [h, w, 3]; the first is the whole image.

  Raises:
    UserError: the image is too small for crops.
  """
  crops = []
  for box, layer in crop_boxes(image.shape[:2], settings.crop_n_layers, settings.crop_overlap_ratio):
    x0, y0, x1, y1 = box
    if x1 <= x0 or y1 <= y0:
      raise UserError(
        f'an image of {image.shape[1]} x {image.shape[0]} pixels is too small for {settings.crop_n_layers} layers '
        f'of crops; use fewer'
      )
    crops.append(Crop(image, box, grids[layer], config, keep=layer < 2))
  return crops


def tile_side(config: DitSamConfig) -> int:
  """Returns the side of the tiles that a model's masks are resized in, in pixels."""
  return min(_LARGEST_TILE, max(64, config.image_size))
