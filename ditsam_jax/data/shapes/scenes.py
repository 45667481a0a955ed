"""Scenes of the shapes data set: coloured shapes on a muted background, with exact masks."""

import dataclasses
import functools
import math

import cv2
import numpy as np

from ditsam_jax import fields
from ditsam_jax.errors import UserError
from ditsam_jax.fields import BELOW_ONE, Choice, Real, Several, Whole, declared

SPLITS = ('train', 'val', 'test')
SIZES = ('small', 'large')
COLOURS = {
  'red': (214, 44, 48),
  'green': (46, 166, 66),
  'blue': (46, 92, 216),
  'yellow': (236, 214, 52),
  'purple': (146, 62, 184),
  'orange': (242, 134, 30),
}
KINDS = ('circle', 'square', 'triangle', 'star', 'cross')

# Circumradius for a nominal radius of 1. These factors give all kinds of the same nominal radius similar areas, so
# 'small' and 'large' match perceived size.
_EXTENT = {'circle': 1.0, 'square': 1.2, 'triangle': 1.35, 'star': 1.32, 'cross': 1.18}
_SUPERSAMPLING = 4
_RIM = 0.72  # brightness of a shape's rim
_PLACEMENT_TRIES = 60
_SCENE_TRIES = 200

_RADII = Several(Real(0, 0.3, above=True, below=True), 2, 2)
_SCENES = Whole(1, 999_999)  # keeps the ids of different splits apart

MOST_OBJECTS = 100  # of a scene, phrases included

_Coverage = tuple[tuple[slice, slice], np.ndarray]  # see _rasterise


@dataclasses.dataclass(frozen=True)
class ScenesConfig:
  """The appearance of scenes. Lengths are fractions of the image side. Raises UserError for invalid values."""

  image_size: int = declared(128, Whole(32, 4096), 'Side of a picture in pixels')
  min_shapes: int = declared(4, Whole(2, 64), 'Minimum number of shapes per scene')
  max_shapes: int = declared(8, Whole(2, 64), 'Maximum number of shapes per scene')
  kinds: tuple[str, ...] = declared(KINDS, Several(Choice(KINDS), 1, len(KINDS)), 'Kinds of shapes')
  colours: tuple[str, ...] = declared(
    tuple(COLOURS), Several(Choice(tuple(COLOURS)), 1, len(COLOURS)), 'Colours of shapes'
  )
  kinds_per_scene: tuple[int, int] = declared(
    (2, 3), Several(Whole(1, len(KINDS)), 2, 2), 'Minimum and maximum kinds per scene; few, so attributes repeat'
  )
  colours_per_scene: tuple[int, int] = declared(
    (2, 3), Several(Whole(1, len(COLOURS)), 2, 2), 'Minimum and maximum colours per scene'
  )
  small_radius: tuple[float, float] = declared(
    (0.09, 0.112), _RADII, 'Nominal radius of small shapes; corners extend up to 1.35 times as far'
  )
  large_radius: tuple[float, float] = declared((0.145, 0.178), _RADII, 'Nominal radius of large shapes')
  large_share: float = declared(0.45, BELOW_ONE, 'Share of large shapes')
  max_occlusion: float = declared(0.35, BELOW_ONE, "Share of an object's area that others may hide")
  background_texture: float = declared(1.0, Real(0, 10), "Strength of the background's slow colour changes")
  distractors: float = declared(
    1.0, Real(0, 10), "Strength of the background's stripes and of its blurred, shapeless blobs"
  )
  grain: int = declared(1, Whole(0, 255), 'Largest brightness change of the noise over everything, in grey levels')
  expressions_per_object: int = declared(5, Whole(1, 100), 'Referring expressions per object')
  rephrased_per_object: int = declared(
    0, Whole(0, 100), 'In training, this many more expressions per object, in other words and word orders'
  )
  orders_per_object: int = declared(
    0, Whole(0, 100), "In training, up to this many more expressions per object of the kind 'order', hardest first"
  )
  templates_per_object: int = declared(
    0, Whole(0, 100), 'In training, up to this many more expressions per object, said as several writers would'
  )
  phrases_per_scene: int = declared(
    0, Whole(0, 100), 'In training, this many phrases per scene that name several shapes, one, or none'
  )
  absent_per_scene: int = declared(
    0, Whole(0, 100), 'In training, this many more phrases per scene that name nothing in it'
  )
  seed: int = declared(0, Whole(0, 2**31 - 1), 'Random seed of all scenes')
  train: int = declared(12000, _SCENES, 'Scenes of the training split')
  val: int = declared(250, _SCENES, 'Scenes of the validation split')
  test: int = declared(500, _SCENES, 'Scenes of the test split')

  def __post_init__(self):
    try:
      fields.check(self, 'scenes')
    except ValueError as error:
      raise UserError(str(error)) from error
    check = functools.partial(_check, self)
    check('min_shapes', self.min_shapes <= self.max_shapes, f'2 to max_shapes ({self.max_shapes})')
    for name, most in (('kinds_per_scene', len(self.kinds)), ('colours_per_scene', len(self.colours))):
      low, high = getattr(self, name)
      check(name, low <= high <= most, f'two rising numbers from 1 to {most}')
    for name in ('small_radius', 'large_radius'):
      low, high = getattr(self, name)
      check(name, low <= high, 'two rising fractions of the image side, below 0.3')
    check(
      'large_radius',
      self.large_radius[0] >= 1.2 * self.small_radius[1],
      'a lower end at least 1.2 times the upper end of small_radius',
    )
    phrases = MOST_OBJECTS - self.max_shapes - self.absent_per_scene
    check(
      'phrases_per_scene',
      self.phrases_per_scene <= phrases,
      f'at most {phrases}: a scene has at most {MOST_OBJECTS} shapes and phrases',
    )


def _check(config: ScenesConfig, name: str, holds: bool, expected: str) -> None:
  if not holds:
    raise UserError(f'scenes: {name} is {getattr(config, name)!r}; expected {expected}')


@dataclasses.dataclass(frozen=True)
class Shape:
  """An object. Position and nominal radius in pixels (pixel i spans i to i + 1), angle in radians."""

  kind: str
  colour: str
  size: str
  radius: float
  angle: float
  x: float
  y: float

  @property
  def category(self) -> str:
    return f'{self.size} {self.colour} {self.kind}'

  @property
  def reach(self) -> float:
    """Circumradius in px."""
    return self.radius * _EXTENT[self.kind]

  @property
  def area(self) -> float:
    """Area before occlusion in px^2."""
    return self.radius**2 * _unit_area(self.kind)


@dataclasses.dataclass(frozen=True)
class Scene:
  """An image (RGB uint8 [S, S, 3]), its shapes from back to front, and their visible pixels (bool [n, S, S])."""

  image: np.ndarray
  shapes: tuple[Shape, ...]
  masks: np.ndarray


def scene_rng(config: ScenesConfig, split: str, index: int) -> np.random.Generator:
  """Returns the random generator of scene `index` of `split`, so scenes can be generated in any order."""
  return np.random.default_rng((config.seed, SPLITS.index(split), index))


def make_scene(config: ScenesConfig, rng: np.random.Generator) -> Scene:
  """Draws shapes, places them so that each stays visible, and paints them. Raises UserError if they do not fit."""
  for _ in range(_SCENE_TRIES):
    placed = _place(_draw_shapes(config, rng), config, rng)
    if placed is not None:
      shapes, coverages, masks = placed
      return Scene(_paint(shapes, coverages, config, rng), shapes, masks)
  raise UserError(
    f'scenes: {config.min_shapes} to {config.max_shapes} shapes of radius up to '
    f'{config.large_radius[1]} of the image do not fit; use fewer or smaller shapes, '
    f'or a max_occlusion above {config.max_occlusion}.'
  )


@functools.cache
def _outline(kind: str) -> np.ndarray:
  """Corner points [n, 2] of an upright shape of nominal radius 1, with its centroid at the origin."""
  if kind == 'circle':
    turns, radii = np.arange(48) / 48, np.ones(48)
  elif kind == 'square':
    turns, radii = np.arange(4) / 4 + 1 / 8, np.ones(4)
  elif kind == 'triangle':
    turns, radii = np.arange(3) / 3 - 1 / 4, np.ones(3)
  elif kind == 'star':
    turns, radii = np.arange(10) / 10 - 1 / 4, np.tile([1.0, 0.46], 5)
  else:
    return _cross()
  angles = 2 * np.pi * turns
  return _EXTENT[kind] * np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _cross() -> np.ndarray:
  """Returns the outline of a plus sign; the half-width of its arms is 0.36 of their length."""
  arm = _EXTENT['cross'] / math.hypot(1, 0.36)
  wide = 0.36 * arm
  quarter = np.array([(arm, -wide), (arm, wide), (wide, wide)])
  turns = [np.array([(c, s), (-s, c)]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
  return np.concatenate([quarter @ turn for turn in turns])


@functools.cache
def _unit_area(kind: str) -> float:
  x, y = _outline(kind).T
  return 0.5 * abs(float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))))


def _draw_shapes(config: ScenesConfig, rng: np.random.Generator) -> list[Shape]:
  """Draws shapes, without positions, from a small set of kinds and colours chosen for the scene."""
  kinds = rng.permutation(config.kinds)[: rng.integers(*config.kinds_per_scene, endpoint=True)].tolist()
  colours = rng.permutation(config.colours)[: rng.integers(*config.colours_per_scene, endpoint=True)].tolist()
  count = int(rng.integers(config.min_shapes, config.max_shapes, endpoint=True))
  kind_ids = rng.integers(len(kinds), size=count).tolist()
  colour_ids = rng.integers(len(colours), size=count).tolist()
  large = (rng.random(count) < config.large_share).tolist()
  uniform = rng.random((count, 2)).tolist()
  shapes = []
  for k, c, is_large, (u, turn) in zip(kind_ids, colour_ids, large, uniform):
    low, high = config.large_radius if is_large else config.small_radius
    radius = config.image_size * (low + u * (high - low))
    shapes.append(Shape(kinds[k], colours[c], SIZES[is_large], radius, 2 * math.pi * turn, 0.0, 0.0))
  return shapes


def _place(
  shapes: list[Shape], config: ScenesConfig, rng: np.random.Generator
) -> tuple[tuple[Shape, ...], list[_Coverage], np.ndarray] | None:
  """Places shapes from back to front; returns shapes, coverages and visible masks, or None if one does not fit."""
  side = config.image_size
  placed, coverages, masks, least_visible = [], [], [], []
  for shape in shapes:
    margin = shape.reach + 1.0
    for u, v in rng.random((_PLACEMENT_TRIES, 2)).tolist():
      x, y = margin + u * (side - 2 * margin), margin + v * (side - 2 * margin)
      # Nearly concentric shapes would hide too much; skip them without rasterising.
      if any(math.hypot(x - other.x, y - other.y) < 0.7 * (shape.radius + other.radius) for other in placed):
        continue
      candidate = dataclasses.replace(shape, x=x, y=y)
      box, coverage = _rasterise(candidate)
      mask = np.zeros((side, side), bool)
      mask[box] = coverage > 127
      remaining = [other & ~mask for other in masks]
      if any(np.count_nonzero(rest) < least for rest, least in zip(remaining, least_visible)):
        continue
      placed.append(candidate)
      coverages.append((box, coverage))
      masks = remaining + [mask]
      least_visible.append((1 - config.max_occlusion) * np.count_nonzero(mask))
      break
    else:
      return None
  return tuple(placed), coverages, np.stack(masks)


def _rasterise(shape: Shape, scale: float = 1.0) -> _Coverage:
  """Returns the box (rows, columns) around a shape, and the coverage of its pixels, 0 to 255."""
  left, top = math.floor(shape.x - shape.reach) - 1, math.floor(shape.y - shape.reach) - 1
  left, top = max(left, 0), max(top, 0)
  width = math.ceil(shape.x + shape.reach) + 1 - left
  height = math.ceil(shape.y + shape.reach) + 1 - top
  c, s = math.cos(shape.angle), math.sin(shape.angle)
  corners = _outline(shape.kind) @ np.array([(c, s), (-s, c)]) * (shape.radius * scale)
  corners += (shape.x - left, shape.y - top)
  fine = np.zeros((height * _SUPERSAMPLING, width * _SUPERSAMPLING), np.uint8)
  # OpenCV's coordinates are relative to pixel centres, here in sixteenths.
  points = np.round((corners * _SUPERSAMPLING - 0.5) * 16).astype(np.int32)
  cv2.fillPoly(fine, [points], 255, shift=4)
  coverage = cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA)
  return (slice(top, top + height), slice(left, left + width)), coverage


def _paint(
  shapes: tuple[Shape, ...], coverages: list[_Coverage], config: ScenesConfig, rng: np.random.Generator
) -> np.ndarray:
  image = _background(config, rng)
  for shape, (box, coverage) in zip(shapes, coverages):
    _paint_shape(image, shape, box, coverage, rng)
  if config.grain:
    image += rng.integers(-config.grain, config.grain + 1, (*image.shape[:2], 1), np.int8)
  np.clip(image, 0, 255, out=image)
  return np.rint(image, out=image).astype(np.uint8)


def _background(config: ScenesConfig, rng: np.random.Generator) -> np.ndarray:
  """Returns greyish, slowly changing colours with faint stripes and blurred blobs, float32 [S, S, 3]."""
  # Details are no finer than a few pixels, so half the resolution is enough.
  half = (config.image_size + 1) // 2
  cells = int(rng.integers(3, 7))
  coarse = rng.uniform(-26, 26, (cells, cells, 1)) + rng.uniform(-11, 11, (cells, cells, 3))
  coarse = (rng.uniform(70, 190) + config.background_texture * coarse).astype(np.float32)
  image = cv2.resize(coarse, (half, half), interpolation=cv2.INTER_CUBIC)
  if config.distractors:
    image += np.float32(config.distractors) * (_stripes(half, rng) + _blobs(half, rng))[..., None]
  return cv2.resize(image, (config.image_size, config.image_size), interpolation=cv2.INTER_LINEAR)


def _stripes(side: int, rng: np.random.Generator) -> np.ndarray:
  """Returns waves of brightness across the image, float32 [side, side]."""
  angle, phase = rng.uniform(0, 2 * np.pi, 2)
  waves = 2 * np.pi * rng.uniform(3, 9) / side
  across = np.arange(side) * waves
  wave = np.exp(1j * (np.cos(angle) * across + phase)) * np.exp(1j * np.sin(angle) * across)[:, None]
  return (rng.uniform(1, 7) * wave.real).astype(np.float32)


def _blobs(side: int, rng: np.random.Generator) -> np.ndarray:
  """Returns brighter and darker patches with soft edges and no recognisable shape, float32 [side, side]."""
  cells = int(rng.integers(8, 14))
  patches = rng.choice(np.array([-14, 0, 0, 0, 14], np.float32), (cells, cells))
  return cv2.resize(patches, (side, side), interpolation=cv2.INTER_LINEAR)


def _paint_shape(
  image: np.ndarray, shape: Shape, box: tuple[slice, slice], coverage: np.ndarray, rng: np.random.Generator
) -> None:
  """Paints a shape with a slightly varied colour, a brightness gradient, and a darker rim."""
  red, green, blue, turn, slope = rng.random(5).tolist()
  colour = np.array(COLOURS[shape.colour], np.float32) + (20 * red - 10, 20 * green - 10, 20 * blue - 10)
  slope = (0.02 + 0.1 * slope) / shape.reach
  slope_x, slope_y = slope * math.cos(2 * math.pi * turn), slope * math.sin(2 * math.pi * turn)
  rows, columns = box
  light = ((np.arange(rows.start, rows.stop) - shape.y) * slope_y)[:, None] + (
    1 + (np.arange(columns.start, columns.stop) - shape.x) * slope_x
  )
  # A darker rim separates overlapping shapes of the same colour.
  light *= _RIM + (1 - _RIM) / 255 * _rasterise(shape, scale=0.86)[1]
  patch = image[box]
  patch += (coverage * (1 / 255))[..., None] * (light[..., None] * colour - patch)
