"""Finds masks of single points on the device, filters them by predicted IoU, stability and crop edges, draws them."""

import collections
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from ditsam_jax.geometry.letterbox import logit
from ditsam_jax.inference import mask_programs
from ditsam_jax.inference.engine import Row
from ditsam_jax.inference.framing import Framed
from ditsam_jax.inference.mask_crops import Crop, tile_side
from ditsam_jax.inference.mask_programs import Measures
from ditsam_jax.inference.mask_settings import MaskSettings
from ditsam_jax.inference.phrase_instances import COVERED, Named
from ditsam_jax.inference.prompts import Prompt, point_tokens
from ditsam_jax.inference.segmenter import Segmenter

EDGE = 20.0  # masks within this many pixels of a crop's edge are cut off, as in Meta's code

_POINTS_AT_ONCE = {'cpu': 8}  # by platform; limited by the cache
_MASKS_AT_ONCE = {'cpu': 8}  # resized to the image's own size in one program
_MASKS_ELSEWHERE = 64
_CROPS_AT_ONCE = {'cpu': 1}  # encoded in one program, with crops
_CROPS_ELSEWHERE = 5  # the image and the crops of the first layer


class Candidate(NamedTuple):
  """A mask with sufficient predicted IoU; stability and box are filled in later."""

  logits: jax.Array  # f32 [S/4, S/4], on a device
  score: float
  point: np.ndarray  # (x, y) in pixels of the crop
  stability: float = 0.0
  box: tuple[int, int, int, int] = (0, 0, 0, 0)  # in pixels of the crop


class Stopped(Exception):
  """The masks are no longer wanted."""


class Candidates:
  """Finds and draws masks with a model."""

  def __init__(self, segmenter: Segmenter, settings: MaskSettings):
    self._engine, self._settings = segmenter.engine, settings
    self._threshold = np.float32(logit(segmenter.config.mask_threshold))
    platform = self._engine.devices[0].platform
    self._points_at_once = min(settings.points_per_batch, _POINTS_AT_ONCE.get(platform, settings.points_per_batch))
    self._masks_at_once = _MASKS_AT_ONCE.get(platform, _MASKS_ELSEWHERE)
    self._crops_at_once = _CROPS_AT_ONCE.get(platform, _CROPS_ELSEWHERE) if settings.crop_n_layers else 1
    everywhere = np.ones((tile_side(segmenter.config),) * 2, bool)
    self._everywhere = jax.device_put(everywhere, self._engine.devices[0])

  def find(
    self, crops: list[Crop], named: Named | None, wanted: Callable[[], bool] = lambda: True
  ) -> list[list[Candidate]]:
    """Returns each crop's masks that pass the filters; with `named`, only those of points and pixels it contains.

    Raises:
      Stopped: `wanted`, called before each batch of points, returned False.
    """
    image = np.array(crops[0].box, np.float32)
    found: list[list[Candidate]] = [[] for _ in crops]
    points = [crop.points if named is None else named.points(crop.box, crop.points) for crop in crops]
    places = [i for i in range(len(crops)) if len(points[i])]
    encoded_at_once = self._crops_at_once * len(self._engine.devices)
    for start in range(0, len(places), encoded_at_once):
      some = [(i, crops[i].framed()) for i in places[start : start + encoded_at_once]]
      self._engine.encode([framed.square for _, framed in some], self._crops_at_once)
      for i, framed in some:
        inside = [self._everywhere] * len(crops[i].tiles) if named is None else crops[i].tiles_of(named.mask)
        waiting = []
        for candidate in self._scored(points[i], framed, wanted):
          waiting.append(candidate)
          if len(waiting) == self._masks_at_once:
            found[i] += self._stable(crops[i], waiting, inside, image)
            waiting = []
        found[i] += self._stable(crops[i], waiting, inside, image)
    return found

  def _scored(self, points: np.ndarray, framed: Framed, wanted: Callable[[], bool]) -> Iterator[Candidate]:
    """Yields masks with sufficient predicted IoU; the device is one batch ahead."""
    size = self._points_at_once * len(self._engine.devices)
    ahead: collections.deque = collections.deque()
    for start in range(0, len(points), size):
      if not wanted():
        raise Stopped
      some = points[start : start + size]
      rows = [_row(framed, point) for point in some]
      ahead.append((some, self._engine.run(rows, self._points_at_once, one_image=True)))
      if len(ahead) > 1:
        yield from self._good(*ahead.popleft())
    while ahead:
      yield from self._good(*ahead.popleft())

  def _good(self, points: np.ndarray, pieces) -> Iterator[Candidate]:
    least = self._settings.pred_iou_thresh
    for piece in pieces:
      scores = np.asarray(piece.iou)[: len(piece.rows)]
      good = scores > np.float32(least) if least > 0 else np.ones_like(scores, bool)
      for row, mask in np.argwhere(good):
        logits = mask_programs.pick(piece.logits, np.int32(row), np.int32(mask))
        yield Candidate(logits, float(scores[row, mask]), points[piece.rows[row]])

  def _stable(self, crop: Crop, candidates: list[Candidate], inside: Sequence, image: np.ndarray) -> list[Candidate]:
    """Returns the candidates that are stable, not cut off by the crop, and mostly `inside`."""
    if not candidates:
      return []
    settings = self._settings
    logits = self._filled(candidates)
    measures = Measures.none(len(logits))
    offset = np.float32(settings.stability_score_offset)
    for tile, part in zip(crop.tiles, inside):
      measures = mask_programs.measure(measures, logits, tile, part, self._threshold, offset)
    least = np.float32(settings.stability_score_thresh), np.float32(COVERED)
    judged = mask_programs.judge(measures, *least, np.array(crop.box, np.float32), image, np.float32(EDGE))
    rows = zip(candidates, *(np.asarray(array).tolist() for array in judged))
    return [candidate._replace(stability=stability, box=tuple(box)) for candidate, kept, stability, box in rows if kept]

  def draw(self, crop: Crop, candidates: list[Candidate]) -> Iterator[np.ndarray]:
    """Yields the candidates' masks, bool [h, w] at the crop's own size; only these are copied from the device."""
    for start in range(0, len(candidates), self._masks_at_once):
      yield from self._drawn(crop, candidates[start : start + self._masks_at_once])

  def _drawn(self, crop: Crop, candidates: list[Candidate]) -> np.ndarray:
    """bool [C, h, w]."""
    logits = self._filled(candidates)
    masks = np.zeros((len(candidates), *crop.size), bool)
    # Starts all tiles before waiting for the first.
    for tile, packed in [(tile, mask_programs.draw(logits, tile, self._threshold)) for tile in crop.tiles]:
      bits = np.unpackbits(np.asarray(packed)[: tile.height, : len(candidates)], axis=2, count=int(tile.width))
      rows = slice(int(tile.top), int(tile.top + tile.height))
      columns = slice(int(tile.left), int(tile.left + tile.width))
      masks[:, rows, columns] = bits.transpose(1, 0, 2)
    return masks

  def _filled(self, candidates: list[Candidate]) -> tuple[jax.Array, ...]:
    """Returns the candidates' logits on one device, padded to the program's size."""
    logits = [candidate.logits for candidate in candidates]
    if len(self._engine.devices) > 1:
      logits = jax.device_put(logits, self._engine.devices[0])
    return (*logits, *logits[-1:] * (self._masks_at_once - len(logits)))


def _row(framed: Framed, point: np.ndarray) -> Row:
  prompt = Prompt(points=point[None], labels=np.ones(1, np.int32))
  return Row(framed.square, None, point_tokens(prompt, framed.scale, framed.offset), multimask=True)
