"""`SamAutomaticMaskGenerator` with Meta's interface: segments everything, or everything that a phrase refers to."""

import collections
import concurrent.futures
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ditsam_jax.errors import UserError
from ditsam_jax.geometry.letterbox import logit
from ditsam_jax.geometry.masks import encode_rle
from ditsam_jax.inference import mask_programs
from ditsam_jax.inference.framing import Framed, frame
from ditsam_jax.inference.mask_candidates import Candidate, Candidates
from ditsam_jax.inference.mask_crops import Crop, crops_of
from ditsam_jax.inference.mask_records import Found, in_image, moved, record, without_regions
from ditsam_jax.inference.mask_settings import MaskSettings
from ditsam_jax.inference.phrase_instances import Named
from ditsam_jax.inference.prompts import Prompt, check_text
from ditsam_jax.inference.reading import read_ahead
from ditsam_jax.inference.results import Prediction
from ditsam_jax.inference.segmenter import Segmenter, load_with_tokenizer
from ditsam_jax.models.ditsam import DitSam
from ditsam_jax.storage.description import check_reads_points
from ditsam_jax.storage.image_files import read_image
from ditsam_jax.tokenization import Tokenizer

_READ_AHEAD = 2  # images

Model = str | os.PathLike | DitSam | Segmenter


class _Picture(NamedTuple):
  """An image that was read."""

  crops: list[Crop]
  framed: Framed  # the input of the model that reads phrases


class SamAutomaticMaskGenerator:
  """Segments a whole image; a drop-in replacement for `segment_anything.SamAutomaticMaskGenerator`.

      generator = SamAutomaticMaskGenerator('sam_shapes_multimask')
      for record in generator.generate(image):
        record['segmentation'], record['bbox'], record['predicted_iou']

      generator = SamAutomaticMaskGenerator('sam_shapes_multimask', text_model='shapes')
      generator.generate(image, text='the red circles')

  Prompts the model with a grid of points. Masks are filtered by predicted IoU, stability and crop edges, and duplicates
  are removed, on the device. With a phrase, the points are those in the sentence's own mask, see `phrase_instances`.
  Programs depend only on the model and `points_per_batch`; other images, image sizes, crops, phrases, thresholds and
  grids don't recompile. Threads may share a generator.
  """

  def __init__(
    self,
    model: Model,
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
    text_model: Model | None = None,
    tokenizer: Tokenizer | None = None,
    dtype: str | None = 'auto',
  ) -> None:
    """Creates a generator. Arguments up to `output_mode` and their defaults are Meta's.

    Args:
      model: a model in memory, a saved model's folder, the name of a shipped model, or a Segmenter to share. It gets
        points without text, so it must have been trained with such prompts.
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
      text_model: the model that reads phrases, in one of the same forms; None if `model` reads them.
      tokenizer: tokenizer of a model in memory that reads phrases.
      dtype: 'float32', 'bfloat16', or 'auto': bfloat16 on TPUs and GPUs, float32 on CPUs. Ignored with a Segmenter.

    Raises:
      UserError: an argument is invalid, a model or dtype does not exist, `model` was trained with sentences only (as
        far as its model.json says), or `text_model` has no text encoder.
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
    source = model.checkpoint if isinstance(model, Segmenter) else model
    if isinstance(source, str | os.PathLike):
      check_reads_points(source)
    reader = model if text_model is None else text_model
    alone = reader is model or isinstance(model, str | os.PathLike) and reader == model
    self._segmenter = _segmenter(model, tokenizer if alone else None, dtype)
    self._text = self._segmenter if alone else _segmenter(reader, tokenizer, dtype)
    if text_model is not None and self._text.config.text_encoder is None:
      shown = f' {str(text_model)!r}' if isinstance(text_model, str | os.PathLike) else ''
      raise UserError(
        f'text_model{shown}: this model has no text encoder; expected a text-prompted model, such as shapes'
      )
    self.config = self._segmenter.config
    self._candidates = Candidates(self._segmenter, self.settings)

  @property
  def dtype(self) -> str:
    """The compute type, 'float32' or 'bfloat16'."""
    return self._segmenter.dtype

  @property
  def tokenizer(self) -> Tokenizer | None:
    """The tokenizer of the model that reads phrases; None if there is none."""
    return self._text.tokenizer

  def generate(
    self, image: Any, text: str | None = None, *, wanted: Callable[[], bool] = lambda: True
  ) -> list[dict[str, Any]]:
    """Segments one image.

    Args:
      image: uint8 [h, w, 3], or anything else that `image_files.read_image` accepts.
      text: a phrase that selects objects, see `phrase_instances`. Parts of its mask that no object covers are returned
        as well, last, with the predicted IoU and stability of its whole mask. An empty mask returns [].
      wanted: called before each batch of points, from this thread; returns False to stop.

    Returns:
      Meta's records: `segmentation`; `area` in pixels; `bbox` [x, y, width, height], ending at the last pixel;
      `predicted_iou`; `point_coords` [[x, y]], the mask's point prompt; `stability_score`; `crop_box`. Sorted by
      predicted IoU, highest first; with crops, smallest crops first.

    Raises:
      UserError: the image cannot be read, or no model reads text.
      Stopped: `wanted` returned False.
    """
    [records] = self.stream([(image, text)], wanted=wanted)
    return records

  def stream(
    self, requests: Iterable[tuple[Any, str | None]], *, wanted: Callable[[], bool] = lambda: True
  ) -> Iterator[list[dict[str, Any]]]:
    """Yields `generate` for any number of (image, text) pairs, in order; text None segments everything.

    Reads the next images, and draws and encodes the last one's masks, while the device computes. Consecutive pairs with
    the same image object or path share its embedding.

    Raises:
      UserError: a pair is invalid, see `generate`; earlier results are yielded first.
      Stopped: `wanted` returned False, see `generate`.
    """
    with concurrent.futures.ThreadPoolExecutor(2) as readers, concurrent.futures.ThreadPoolExecutor(1) as writer:
      finishing: collections.deque[concurrent.futures.Future] = collections.deque()
      try:
        for picture, named in self._begun(read_ahead(requests, self._prompt, self._picture, readers, _READ_AHEAD)):
          found = named and self._named(picture, named())
          candidates = self._candidates.find(picture.crops, found, wanted)
          finishing.append(writer.submit(self._records, picture.crops, candidates, found))
          while finishing and (finishing[0].done() or len(finishing) > 1):
            yield finishing.popleft().result()
      except UserError:
        while finishing:
          yield finishing.popleft().result()
        raise
      while finishing:
        yield finishing.popleft().result()

  def _begun(
    self, prepared: Iterator[tuple[_Picture, Prompt]]
  ) -> Iterator[tuple[_Picture, Callable[[], Prediction] | None]]:
    """Starts each image's sentence before the previous image's points, so the device does not wait for the host."""
    waiting, failure = None, None
    try:
      for picture, prompt in prepared:
        begun = None if prompt.text is None else self._text.begin([(picture.framed, prompt)], 1)[0]
        if waiting is not None:
          yield waiting
        waiting = picture, begun
    except UserError as error:
      failure = error
    if waiting is not None:
      yield waiting
    if failure is not None:
      raise failure

  def _prompt(self, text: str | None) -> Prompt:
    """Checks a phrase."""
    if text is not None and self._text.config.text_encoder is None:
      check_text(text)
      raise UserError(
        f'text {text!r}: this model has no text encoder; pass one that has, such as shapes, as text_model'
      )
    return self._text.prompt(Prompt(text), may_be_empty=True)

  def _picture(self, image: Any) -> _Picture:
    """Reads an image."""
    image = read_image(image)
    crops = crops_of(image, self.settings, self._grids, self.config)
    own = self._text is self._segmenter  # then both share the image's embedding
    return _Picture(crops, crops[0].framed() if own else frame(image, self._text.config))

  def _named(self, picture: _Picture, prediction: Prediction) -> Named:
    """What a sentence names, from its prediction."""
    threshold = logit(self._text.config.mask_threshold)
    return Named.of(prediction, picture.framed, threshold, self.settings.stability_score_offset)

  def _records(self, crops: list[Crop], candidates: list[list[Candidate]], named: Named | None) -> list[dict[str, Any]]:
    """Removes duplicates within and between crops; returns the records."""
    settings = self.settings
    chosen: list[tuple[Crop, Candidate]] = []
    for crop, mine in zip(crops, candidates):
      boxes = np.reshape([candidate.box for candidate in mine], (-1, 4))
      kept = kept_of(boxes, [candidate.score for candidate in mine], settings.box_nms_thresh)
      chosen += [(crop, mine[i]) for i in kept]
    if len(crops) > 1:
      boxes = np.reshape([moved(candidate.box, crop.box) for crop, candidate in chosen], (-1, 4))
      smallness = [1 / ((x1 - x0) * (y1 - y0)) for x0, y0, x1, y1 in (crop.box for crop, _ in chosen)]
      chosen = [chosen[i] for i in kept_of(boxes, smallness, settings.crop_nms_thresh)]
    found = self._drawn(chosen, crops[0].size)
    if settings.min_mask_region_area > 0:
      threshold = max(settings.box_nms_thresh, settings.crop_nms_thresh)
      found = without_regions(found, settings.min_mask_region_area, threshold)
    if named is not None:
      found = named.instances(found, settings.min_mask_region_area)
    return [record(each, settings.output_mode) for each in found]

  def _drawn(self, chosen: list[tuple[Crop, Candidate]], size: tuple[int, int]) -> list[Found]:
    """Draws the chosen masks in the image, in their order."""
    found: dict[int, Found] = {}
    by_crop: dict[int, list[int]] = {}
    for i, (crop, _) in enumerate(chosen):
      by_crop.setdefault(id(crop), []).append(i)
    for places in by_crop.values():
      crop = chosen[places[0]][0]
      for i, mask in zip(places, self._candidates.draw(crop, [chosen[i][1] for i in places])):
        found[i] = _found(crop, chosen[i][1], mask, size)
    return [found[i] for i in range(len(chosen))]


def _found(crop: Crop, candidate: Candidate, mask: np.ndarray, size: tuple[int, int]) -> Found:
  """A candidate with its mask bool [h, w], brought from the crop to the image."""
  x, y = candidate.point + crop.box[:2]
  return Found(
    encode_rle(in_image(mask, crop.box, size)),
    int(np.count_nonzero(mask)),
    moved(candidate.box, crop.box),
    candidate.score,
    candidate.stability,
    (float(x), float(y)),
    crop.box,
  )


def kept_of(boxes: np.ndarray, scores: Sequence[float], threshold: float) -> list[int]:
  """Returns indices of the boxes to keep, see `mask_programs.kept_boxes`."""
  return mask_programs.kept_boxes(boxes, np.array(scores, np.float32), threshold).tolist()


def _segmenter(model: Model, tokenizer: Tokenizer | None, dtype: str | None) -> Segmenter:
  if isinstance(model, Segmenter):
    return model
  if not isinstance(model, DitSam):
    model, own = load_with_tokenizer(model, dtype)
    tokenizer = tokenizer or own
  return Segmenter.from_model(model, tokenizer, dtype=dtype)
