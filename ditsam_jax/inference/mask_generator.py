"""`SamAutomaticMaskGenerator` with Meta's interface: segments everything, or everything that a phrase refers to."""

import collections
import concurrent.futures
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ditsam_jax.errors import UserError
from ditsam_jax.geometry.letterbox import logit
from ditsam_jax.geometry.masks import encode_rle
from ditsam_jax.geometry.point_grids import Box, crop_boxes
from ditsam_jax.inference import mask_programs
from ditsam_jax.inference.engine import Row, Sentence
from ditsam_jax.inference.framing import Framed, frame
from ditsam_jax.inference.mask_programs import Measures
from ditsam_jax.inference.mask_records import Found, in_image, record, without_regions
from ditsam_jax.inference.mask_settings import MaskSettings
from ditsam_jax.inference.prompts import Prompt, point_tokens
from ditsam_jax.inference.segmenter import Segmenter, load_with_tokenizer, same_image
from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.models.ditsam import DitSam
from ditsam_jax.storage.image_files import read_image
from ditsam_jax.tokenization import Tokenizer

EDGE = 20.0  # masks within this many pixels of a crop's edge are cut off, as in Meta's code

_POINTS_AT_ONCE = {'cpu': 8}  # by platform; limited by the cache
_MASKS_AT_ONCE = {'cpu': 8}  # resized to the image's own size in one program
_MASKS_ELSEWHERE = 64
_CROPS_AT_ONCE = {'cpu': 1}  # encoded in one program, with crops
_CROPS_ELSEWHERE = 5  # the image and the crops of the first layer
_LARGEST_TILE = 512  # side in pixels
_READ_AHEAD = 2  # images


class _Candidate(NamedTuple):
  """A mask with sufficient predicted IoU; stability and box are filled in later."""

  logits: jax.Array  # f32 [S/4, S/4], on a device
  score: float
  point: np.ndarray  # (x, y) in pixels of the crop
  stability: float = 0.0
  box: tuple[int, int, int, int] = (0, 0, 0, 0)  # in pixels of the crop


class _Crop:
  """A crop of an image.

  Attributes:
    box: its box in the image.
    size: height and width.
    points: (x, y) in pixels of the crop, [N, 2].
    tiles: tiles of its own pixels.
  """

  def __init__(self, image: np.ndarray, box: Box, grid: np.ndarray, config: DitSamConfig, tile: int, keep: bool):
    """`grid`: points on 0..1; `keep`: keep the model's input and its embedding for further phrases."""
    x0, y0, x1, y1 = self.box = box
    self.size = y1 - y0, x1 - x0
    self.points = grid * (x1 - x0, y1 - y0)
    self._pixels, self._config, self._kept = image[y0:y1, x0:x1], config, None
    framed = self.framed()
    self.tiles = mask_programs.tiles_of(*framed.own_size_operators(), tile)
    self._kept = framed if keep else None

  def framed(self) -> Framed:
    """Returns the crop as input of the model."""
    return self._kept or frame(self._pixels, self._config)


class SamAutomaticMaskGenerator:
  """Segments a whole image; a drop-in replacement for `segment_anything.SamAutomaticMaskGenerator`.

      generator = SamAutomaticMaskGenerator('sam_shapes_multimask')
      for record in generator.generate(image):
        record['segmentation'], record['bbox'], record['predicted_iou']

      SamAutomaticMaskGenerator('shapes').generate(image, text='the red circles')  # models with a text encoder

  Prompts the model with a grid of points. Masks are filtered by predicted IoU, stability and crop edges, and duplicates
  are removed, on the device. Programs depend only on the model and `points_per_batch`; other images, image sizes, crops,
  thresholds and grids don't recompile. Threads may share a generator.
  """

  def __init__(
    self,
    model: str | os.PathLike | DitSam | Segmenter,
    points_per_side: int | None = 32,
    points_per_batch: int = 64,
    pred_iou_thresh: float = 0.88,
    stability_score_thresh: float = 0.95,
    stability_score_offset: float = 1.0,
    box_nms_thresh: float = 0.7,
    crop_n_layers: int = 0,
    crop_nms_thresh: float = 0.7,
    crop_overlap_ratio: float = 512 / 1500,
    crop_n_points_downscale_factor: int = 1,
    point_grids: Sequence[Any] | None = None,
    min_mask_region_area: int = 0,
    output_mode: str = 'binary_mask',
    *,
    tokenizer: Tokenizer | None = None,
    dtype: str | None = 'auto',
  ) -> None:
    """Creates a generator. Arguments up to `output_mode` and their defaults are Meta's.

    Args:
      model: a model in memory, a saved model's folder, the name of a shipped model, or a Segmenter to share.
      points_per_side: points along each side of the image; None with `point_grids`.
      points_per_batch: maximum number of points at once per device; at most 8 are used on CPUs, limited by the cache.
      pred_iou_thresh: drop masks with a predicted IoU up to this; 0 keeps all.
      stability_score_thresh: drop masks with a lower stability; 0 keeps all. Stability is the IoU between the masks at
        the threshold plus and minus the offset.
      stability_score_offset: offset of the stability, on logits.
      box_nms_thresh: of masks whose boxes overlap by more than this IoU, keep the one with the highest predicted IoU.
      crop_n_layers: number of additional layers of crops, with 4**n crops in the n-th.
      crop_nms_thresh: `box_nms_thresh` between crops; the mask of the smaller crop is kept.
      crop_overlap_ratio: overlap of crops in the first layer, as a share of the image's short side.
      crop_n_points_downscale_factor: factor by which each layer has fewer points per side.
      point_grids: custom points (x, y) on 0..1, an array [N, 2] for the image and for each layer of crops.
      min_mask_region_area: remove holes and islands of fewer pixels; 0 keeps them.
      output_mode: format of `segmentation`: 'binary_mask' (bool [h, w]), 'uncompressed_rle' or 'coco_rle'.
      tokenizer: tokenizer of a model in memory that takes text.
      dtype: 'float32', 'bfloat16', or 'auto': bfloat16 on TPUs and GPUs, float32 on CPUs. Ignored with a Segmenter.

    Raises:
      UserError: an argument is invalid, or the model or dtype does not exist.
    """
    self.settings = MaskSettings(
      points_per_side=points_per_side,
      points_per_batch=points_per_batch,
      pred_iou_thresh=pred_iou_thresh,
      stability_score_thresh=stability_score_thresh,
      stability_score_offset=stability_score_offset,
      box_nms_thresh=box_nms_thresh,
      crop_n_layers=crop_n_layers,
      crop_nms_thresh=crop_nms_thresh,
      crop_overlap_ratio=crop_overlap_ratio,
      crop_n_points_downscale_factor=crop_n_points_downscale_factor,
      point_grids=point_grids,
      min_mask_region_area=min_mask_region_area,
      output_mode=output_mode,
    )
    self._grids = self.settings.grids()
    if isinstance(model, Segmenter):
      self._segmenter = model
    else:
      if not isinstance(model, DitSam):
        model, own = load_with_tokenizer(model, dtype)
        tokenizer = tokenizer or own
      self._segmenter = Segmenter.from_model(model, tokenizer, dtype=dtype)
    self.config = self._segmenter.config
    self._engine = self._segmenter.engine
    self._threshold = np.float32(logit(self.config.mask_threshold))
    platform = self._engine.devices[0].platform
    self._points_at_once = min(points_per_batch, _POINTS_AT_ONCE.get(platform, points_per_batch))
    self._masks_at_once = _MASKS_AT_ONCE.get(platform, _MASKS_ELSEWHERE)
    self._crops_at_once = _CROPS_AT_ONCE.get(platform, _CROPS_ELSEWHERE) if crop_n_layers else 1
    self._tile = min(_LARGEST_TILE, max(64, self.config.image_size))

  @property
  def dtype(self) -> str:
    """The compute type, 'float32' or 'bfloat16'."""
    return self._segmenter.dtype

  def generate(self, image: Any, text: str | None = None) -> list[dict[str, Any]]:
    """Segments one image.

    Args:
      image: uint8 [h, w, 3], or anything else that `image_files.read_image` accepts.
      text: a phrase that selects objects. It is combined with each point in one prompt, with a single mask as answer.

    Returns:
      Meta's records: `segmentation`; `area` in pixels; `bbox` [x, y, width, height], ending at the last pixel;
      `predicted_iou`; `point_coords` [[x, y]], the mask's point prompt; `stability_score`; `crop_box`. Sorted by
      predicted IoU, highest first; with crops, smallest crops first.

    Raises:
      UserError: the image cannot be read, or the model takes no text.
    """
    [records] = self.stream([(image, text)])
    return records

  def stream(self, requests: Iterable[tuple[Any, str | None]]) -> Iterator[list[dict[str, Any]]]:
    """Yields `generate` for any number of (image, text) pairs, in order; text None segments everything.

    Reads the next images, and draws and encodes the last one's masks, while the device computes. Consecutive pairs with
    the same image object or path share its embedding, unless text enters the image encoder.

    Raises:
      UserError: a pair is invalid, see `generate`; earlier results are yielded first.
    """
    with concurrent.futures.ThreadPoolExecutor(2) as readers, concurrent.futures.ThreadPoolExecutor(1) as writer:
      finishing: collections.deque[concurrent.futures.Future] = collections.deque()
      try:
        for crops, prompt in self._ahead(readers, requests):
          size = crops[0].size
          candidates = self._candidates(crops, prompt)
          finishing.append(writer.submit(self._records, crops, candidates, size))
          while finishing and (finishing[0].done() or len(finishing) > 1):
            yield finishing.popleft().result()
      except UserError:
        while finishing:
          yield finishing.popleft().result()
        raise
      while finishing:
        yield finishing.popleft().result()

  def _ahead(
    self, pool: concurrent.futures.Executor, requests: Iterable[tuple[Any, str | None]]
  ) -> Iterator[tuple[list[_Crop], Prompt]]:
    """Yields crops, prepared in other threads, with their checked prompts; raises errors in order."""
    waiting: collections.deque[tuple[concurrent.futures.Future, Prompt]] = collections.deque()
    last: Any = None, None
    failure = None
    try:
      for image, text in requests:
        prompt = self._segmenter.prompt(Prompt(text), may_be_empty=True)
        if last[1] is None or not same_image(image, last[0]):
          last = image, pool.submit(self._crops, image)
        waiting.append((last[1], prompt))
        if len(waiting) > _READ_AHEAD:
          future, prompt = waiting.popleft()
          yield future.result(), prompt
    except UserError as error:
      failure = error
    while waiting:
      future, prompt = waiting.popleft()
      yield future.result(), prompt
    if failure is not None:
      raise failure

  def _crops(self, image: Any) -> list[_Crop]:
    """Reads an image and returns its crops, including the whole image."""
    image = read_image(image)
    crops = []
    for box, layer in crop_boxes(image.shape[:2], self.settings.crop_n_layers, self.settings.crop_overlap_ratio):
      x0, y0, x1, y1 = box
      if x1 <= x0 or y1 <= y0:
        raise UserError(
          f'an image of {image.shape[1]} x {image.shape[0]} pixels is too small for {self.settings.crop_n_layers} layers '
          f'of crops; use fewer'
        )
      crops.append(_Crop(image, box, self._grids[layer], self.config, self._tile, keep=layer < 2))
    return crops

  def _candidates(self, crops: list[_Crop], prompt: Prompt) -> list[list[_Candidate]]:
    """Returns each crop's masks that pass the filters on predicted IoU, stability and edges."""
    sentence = self._segmenter.sentence(prompt)
    image = np.array(crops[0].box, np.float32)
    kept = []
    encoded_at_once = self._crops_at_once * len(self._engine.devices)
    for start in range(0, len(crops), encoded_at_once):
      some = [(crop, crop.framed()) for crop in crops[start : start + encoded_at_once]]
      self._engine.encode([framed.square for _, framed in some], self._crops_at_once, sentence)
      for crop, framed in some:
        mine, waiting = [], []
        for candidate in self._scored(crop, framed, sentence):
          waiting.append(candidate)
          if len(waiting) == self._masks_at_once:
            mine += self._stable(crop, waiting, image)
            waiting = []
        kept.append(mine + self._stable(crop, waiting, image))
    return kept

  def _scored(self, crop: _Crop, framed: Framed, sentence: Sentence | None) -> Iterator[_Candidate]:
    """Yields masks with sufficient predicted IoU; the device is one batch ahead."""
    size = self._points_at_once * len(self._engine.devices)
    ahead: collections.deque = collections.deque()
    for start in range(0, len(crop.points), size):
      points = crop.points[start : start + size]
      rows = [self._row(framed, point, sentence) for point in points]
      ahead.append((points, self._engine.run(rows, self._points_at_once, one_image=True)))
      if len(ahead) > 1:
        yield from self._good(*ahead.popleft())
    while ahead:
      yield from self._good(*ahead.popleft())

  def _row(self, framed: Framed, point: np.ndarray, sentence: Sentence | None) -> Row:
    prompt = Prompt(points=point[None], labels=np.ones(1, np.int32))
    return Row(framed.square, sentence, point_tokens(prompt, framed.scale, framed.offset), multimask=sentence is None)

  def _good(self, points: np.ndarray, pieces) -> Iterator[_Candidate]:
    least = self.settings.pred_iou_thresh
    for piece in pieces:
      scores = np.asarray(piece.iou)[: len(piece.rows)]
      good = scores > np.float32(least) if least > 0 else np.ones_like(scores, bool)
      for row, mask in np.argwhere(good):
        logits = mask_programs.pick(piece.logits, np.int32(row), np.int32(mask))
        yield _Candidate(logits, float(scores[row, mask]), points[piece.rows[row]])

  def _stable(self, crop: _Crop, candidates: list[_Candidate], image: np.ndarray) -> list[_Candidate]:
    """Returns the candidates that are stable and not cut off by the crop."""
    if not candidates:
      return []
    settings = self.settings
    logits = self._filled(candidates)
    measures = Measures.none(len(logits))
    offset = np.float32(settings.stability_score_offset)
    for tile in crop.tiles:
      measures = mask_programs.measure(measures, logits, tile, self._threshold, offset)
    judged = mask_programs.judge(
      measures, np.float32(settings.stability_score_thresh), np.array(crop.box, np.float32), image, np.float32(EDGE)
    )
    rows = zip(candidates, *(np.asarray(array).tolist() for array in judged))
    return [candidate._replace(stability=stability, box=tuple(box)) for candidate, kept, stability, box in rows if kept]

  def _filled(self, candidates: list[_Candidate]) -> tuple[jax.Array, ...]:
    """Returns the candidates' logits on one device, padded to the program's size."""
    logits = [candidate.logits for candidate in candidates]
    if len(self._engine.devices) > 1:
      logits = jax.device_put(logits, self._engine.devices[0])
    return (*logits, *logits[-1:] * (self._masks_at_once - len(logits)))

  def _records(
    self, crops: list[_Crop], candidates: list[list[_Candidate]], size: tuple[int, int]
  ) -> list[dict[str, Any]]:
    """Removes duplicates within and between crops; returns the records."""
    settings = self.settings
    chosen: list[tuple[_Crop, _Candidate]] = []
    for crop, mine in zip(crops, candidates):
      boxes = np.reshape([candidate.box for candidate in mine], (-1, 4))
      kept = kept_of(boxes, [candidate.score for candidate in mine], settings.box_nms_thresh)
      chosen += [(crop, mine[i]) for i in kept]
    if len(crops) > 1:
      boxes = np.reshape([_moved(candidate.box, crop.box) for crop, candidate in chosen], (-1, 4))
      smallness = [1 / ((x1 - x0) * (y1 - y0)) for x0, y0, x1, y1 in (crop.box for crop, _ in chosen)]
      chosen = [chosen[i] for i in kept_of(boxes, smallness, settings.crop_nms_thresh)]
    found = self._drawn(chosen, size)
    if settings.min_mask_region_area > 0:
      threshold = max(settings.box_nms_thresh, settings.crop_nms_thresh)
      found = without_regions(found, settings.min_mask_region_area, threshold)
    return [record(each, settings.output_mode) for each in found]

  def _drawn(self, chosen: list[tuple[_Crop, _Candidate]], size: tuple[int, int]) -> list[Found]:
    """Draws the chosen masks in the image; only these are copied from the device."""
    found: dict[int, Found] = {}
    by_crop: dict[int, list[int]] = {}
    for i, (crop, _) in enumerate(chosen):
      by_crop.setdefault(id(crop), []).append(i)
    for places in by_crop.values():
      crop = chosen[places[0]][0]
      for start in range(0, len(places), self._masks_at_once):
        some = places[start : start + self._masks_at_once]
        for i, mask in zip(some, self._masks(crop, [chosen[i][1] for i in some])):
          found[i] = _found(crop, chosen[i][1], mask, size)
    return [found[i] for i in range(len(chosen))]

  def _masks(self, crop: _Crop, candidates: list[_Candidate]) -> np.ndarray:
    """bool [C, h, w] at the crop's own size."""
    logits = self._filled(candidates)
    masks = np.zeros((len(candidates), *crop.size), bool)
    # Starts all tiles before waiting for the first.
    for tile, packed in [(tile, mask_programs.draw(logits, tile, self._threshold)) for tile in crop.tiles]:
      bits = np.unpackbits(np.asarray(packed)[: tile.height, : len(candidates)], axis=2, count=int(tile.width))
      rows = slice(int(tile.top), int(tile.top + tile.height))
      columns = slice(int(tile.left), int(tile.left + tile.width))
      masks[:, rows, columns] = bits.transpose(1, 0, 2)
    return masks


def _found(crop: _Crop, candidate: _Candidate, mask: np.ndarray, size: tuple[int, int]) -> Found:
  """A candidate with its mask bool [h, w], brought from the crop to the image."""
  x, y = candidate.point + crop.box[:2]
  return Found(
    encode_rle(in_image(mask, crop.box, size)),
    int(np.count_nonzero(mask)),
    _moved(candidate.box, crop.box),
    candidate.score,
    candidate.stability,
    (float(x), float(y)),
    crop.box,
  )


def kept_of(boxes: np.ndarray, scores: Sequence[float], threshold: float) -> list[int]:
  """Returns indices of the boxes to keep, see `mask_programs.kept_boxes`."""
  return mask_programs.kept_boxes(boxes, np.array(scores, np.float32), threshold).tolist()


def _moved(box: tuple[int, int, int, int], crop: Box) -> tuple[int, int, int, int]:
  x0, y0, x1, y1 = box
  return x0 + crop[0], y0 + crop[1], x1 + crop[0], y1 + crop[1]
