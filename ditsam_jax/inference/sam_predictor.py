"""Meta's `segment_anything.SamPredictor`, with text prompts for models that support them."""

import dataclasses
import os
from typing import Any

import numpy as np

from ditsam_jax.errors import UserError
from ditsam_jax.geometry.letterbox import logit
from ditsam_jax.inference.framing import Framed, frame, resize_as_meta, resized_as_meta
from ditsam_jax.inference.programs import Device
from ditsam_jax.inference.prompts import Prompt
from ditsam_jax.inference.segmenter import Segmenter, load_with_tokenizer
from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.models.ditsam import DitSam
from ditsam_jax.storage.image_files import read_image
from ditsam_jax.tokenization import Tokenizer

_FORMATS = ('RGB', 'BGR')
_BATCH = {'cpu': 8}  # prompts of one image per batch, by platform; more do not fit a CPU's cache
_BATCH_ELSEWHERE = 64


class NoImageError(UserError, RuntimeError):
  """No image is set. Also a RuntimeError, as in Meta's code."""


@dataclasses.dataclass(frozen=True)
class _ImageEncoder:
  img_size: int  # side of the model's square


@dataclasses.dataclass(frozen=True)
class _Sam:
  """The attributes that code written for Meta's predictor reads from its model."""

  mask_threshold: float  # on logits
  image_encoder: _ImageEncoder
  device: Device
  image_format: str = 'RGB'


class Transform:
  """Maps images, points and boxes to the model's square, as Meta's ResizeLongestSide.

  Models with a text encoder centre the image, so coordinates are shifted too.
  """

  def __init__(self, config: DitSamConfig) -> None:
    self.target_length = config.image_size
    self._config = config

  def apply_image(self, image: np.ndarray) -> np.ndarray:
    """Resizes an image, uint8 [h, w, 3], to a long side of `target_length`."""
    return resize_as_meta(image, self.target_length)

  def apply_coords(self, coords: np.ndarray, original_size: tuple[int, int]) -> np.ndarray:
    """Maps (x, y) [..., 2] in pixels of an image of `original_size` (height, width) to pixels of the square."""
    framed = frame(np.zeros((*original_size, 3), np.uint8), self._config)
    return np.asarray(coords, float) * framed.scale + framed.offset

  def apply_boxes(self, boxes: np.ndarray, original_size: tuple[int, int]) -> np.ndarray:
    """Maps boxes [..., 4], (x0, y0, x1, y1), in the same way, to [B, 4]."""
    return self.apply_coords(np.reshape(boxes, (-1, 2, 2)), original_size).reshape(-1, 4)

  @staticmethod
  def get_preprocess_shape(oldh: int, oldw: int, long_side_length: int) -> tuple[int, int]:
    """Height and width of the resized image."""
    return resized_as_meta(oldh, oldw, long_side_length)


class SamPredictor:
  """Segments one image; code written for `segment_anything.SamPredictor` runs unchanged.

      predictor = SamPredictor('sam_shapes_multimask')
      predictor.set_image(image)
      masks, scores, logits = predictor.predict(point_coords=np.array([[40, 60]]), point_labels=np.array([1]))
      masks, _, _ = predictor.predict(np.array([[40, 60], [80, 20]]), np.array([1, 0]), mask_input=logits[:1])

  The image is encoded once; each prompt only runs the decoder. If the text enters the image encoder, each new sentence
  encodes the image again; the last few sentences are cached.

  Results are NumPy arrays. `predict_batch` replaces `predict_torch` and takes pixels of the image. Points are padded to
  8, 16, 32, ... tokens and masked, so new point counts don't recompile.

  A predictor holds one image: use one predictor per thread.

  Attributes:
    model: `mask_threshold` (on logits), `image_format`, `image_encoder.img_size`, `device`, as Meta's code reads them.
    transform: maps images, points and boxes to the model's square.
    is_image_set: whether an image is set.
    original_size: (height, width) of the image.
    input_size: (height, width) of the image in the model's square.
  """

  def __init__(
    self,
    sam_model: str | os.PathLike | DitSam,
    *,
    tokenizer: Tokenizer | None = None,
    dtype: str | None = 'auto',
  ) -> None:
    """Creates a predictor.

    Args:
      sam_model: a model in memory, a saved model's folder, or the name of a shipped model.
      tokenizer: the tokenizer of a model in memory that accepts text.
      dtype: 'float32', 'bfloat16', or 'auto': bfloat16 on TPUs and GPUs, float32 on CPUs.

    Raises:
      UserError: the model does not exist, the type is unknown, or the tokenizer does not belong to the model.
    """
    if not isinstance(sam_model, DitSam):
      sam_model, own = load_with_tokenizer(sam_model, dtype)
      tokenizer = tokenizer or own
    self.config = config = sam_model.config
    self.tokenizer = tokenizer
    self._segmenter = Segmenter.from_model(sam_model, tokenizer, dtype=dtype)
    device = self._segmenter.engine.devices[0]
    self.model = _Sam(logit(config.mask_threshold), _ImageEncoder(config.image_size), device)
    self.transform = Transform(config)
    self.reset_image()

  @classmethod
  def from_model(
    cls, model: DitSam, tokenizer: Tokenizer | None = None, *, dtype: str | None = 'auto'
  ) -> 'SamPredictor':
    """Wraps a model in memory. Without a tokenizer it accepts no text."""
    return cls(model, tokenizer=tokenizer, dtype=dtype)

  @property
  def device(self) -> Device:
    """The device that encodes the image."""
    return self.model.device

  @property
  def dtype(self) -> str:
    """The compute type, 'float32' or 'bfloat16'."""
    return self._segmenter.dtype

  @property
  def features(self) -> np.ndarray | None:
    """The same as `get_image_embedding()`, or None if no image is set."""
    return self.get_image_embedding() if self.is_image_set else None

  def set_image(self, image: Any, image_format: str = 'RGB') -> None:
    """Sets the image for the prompts that follow.

    Args:
      image: uint8 [h, w, 3], or anything else that `image_files.read_image` accepts.
      image_format: 'RGB' or 'BGR', the channel order of an array.

    Raises:
      UserError: the image cannot be read, or the format is unknown; the previous image stays set.
    """
    if image_format not in _FORMATS:
      raise UserError(f'image_format {image_format!r}: expected one of {", ".join(_FORMATS)}')
    if image_format == 'BGR':
      image = _from_bgr(image)
    framed = frame(read_image(image), self.config)
    if not self.config.encodes_text_with_image:  # otherwise the first prompt's sentence may be encoded with it
      self._segmenter.engine.embedding(framed.square)
    self._framed = framed
    self.original_size = framed.size
    self.input_size = framed.box.height, framed.box.width

  def predict(
    self,
    point_coords: np.ndarray | None = None,
    point_labels: np.ndarray | None = None,
    box: np.ndarray | None = None,
    mask_input: np.ndarray | None = None,
    multimask_output: bool | None = None,
    return_logits: bool = False,
    *,
    text: str | None = None,
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Segments the image by the combined prompts. Each prompt may be None, even all of them.

    Args:
      point_coords: [N, 2], (x, y) in pixels of the image; may lie outside it.
      point_labels: [N], 1 for points on the object, 0 for points off it.
      box: [4] or [1, 4], (x0, y0, x1, y1) in pixels of the image.
      mask_input: f32 [1, S/4, S/4], low-resolution logits of an earlier prediction.
      multimask_output: return three masks instead of one, for ambiguous prompts such as a single click. Defaults to
        True, as in Meta's code, but to False with text, because models are trained to answer text with one mask.
      return_logits: return logits instead of masks.
      text: a sentence, for models with a text encoder.

    Returns:
      Masks bool [C, h, w] at the image's own size (logits f32 with `return_logits`), predicted IoU f32 [C], and
      low-resolution logits f32 [C, S/4, S/4]; C is 3 with `multimask_output`, else 1.

    Raises:
      NoImageError: no image is set.
      UserError: a prompt is invalid.
    """
    prompt = _prompt(point_coords, point_labels, _one_box(box), mask_input, multimask_output, text)
    return tuple(array[0] for array in self._predict([prompt], return_logits))

  def predict_batch(
    self,
    point_coords: np.ndarray | None = None,
    point_labels: np.ndarray | None = None,
    boxes: np.ndarray | None = None,
    mask_input: np.ndarray | None = None,
    multimask_output: bool | None = None,
    return_logits: bool = False,
    *,
    text: list[str] | None = None,
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Runs `predict` for B prompts at once. Replaces `predict_torch`; takes pixels of the image and NumPy arrays.

    Args:
      point_coords: [B, N, 2].
      point_labels: [B, N].
      boxes: [B, 4].
      mask_input: [B, 1, S/4, S/4].
      multimask_output: see `predict`.
      return_logits: see `predict`.
      text: B sentences.

    Returns:
      The arrays of `predict`, each with a leading axis of B.

    Raises:
      NoImageError: no image is set.
      UserError: a prompt is invalid, or the numbers of prompts differ.
    """
    given: dict[str, Any] = {
      'point_coords': point_coords,
      'point_labels': point_labels,
      'boxes': boxes,
      'mask_input': mask_input,
    }
    given['text'] = text
    counts = {name: _count(name, value) for name, value in given.items() if value is not None}
    if len(set(counts.values())) != 1 or not max(counts.values()):
      given_counts = ', '.join(f'{count} {name}' for name, count in counts.items()) or 'no prompts'
      raise UserError(f'{given_counts}: expected the same number of each, at least 1')
    rows = zip(*([None] * max(counts.values()) if value is None else value for value in given.values()))
    prompts = [_prompt(xy, labels, box, mask, multimask_output, sentence) for xy, labels, box, mask, sentence in rows]
    return self._predict(prompts, return_logits)

  def get_image_embedding(self) -> np.ndarray:
    """The image embedding without a sentence, f32 [1, C, h, w], as in Meta's code."""
    embedding = self._segmenter.engine.embedding(self._image().square)
    return np.asarray(embedding, np.float32).transpose(2, 0, 1)[None]

  def reset_image(self) -> None:
    """Removes the image."""
    self._framed: Framed | None = None
    self.original_size = self.input_size = None

  @property
  def is_image_set(self) -> bool:
    return self._framed is not None

  def _image(self) -> Framed:
    if self._framed is None:
      raise NoImageError('no image is set; call set_image first')
    return self._framed

  def _predict(self, prompts: list[Prompt], return_logits: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns masks or logits, scores, and low-resolution logits of all prompts."""
    framed = self._image()
    most = _BATCH.get(self.device.platform, _BATCH_ELSEWHERE)
    at_once = 1 if len(prompts) == 1 else 8 if len(prompts) <= 8 else most
    checked = [self._segmenter.prompt(prompt, may_be_empty=True) for prompt in prompts]
    found = self._segmenter.predict(framed, checked, at_once=at_once)
    # A generator, because logits at the image's own size take four times the memory of the masks.
    rows = ((each.logits if return_logits else each.masks, each.scores, each.low_res_logits) for each in found)
    masks, scores, low_res = (np.stack(arrays) for arrays in zip(*rows))
    return masks, scores, low_res


def _prompt(points, labels, box, mask, multimask, text) -> Prompt:
  if points is not None and labels is None:
    raise UserError('points without labels: expected point_labels [N], 1 on the object and 0 off it')
  return Prompt(text, points, labels, box, mask, text is None if multimask is None else multimask)


def _one_box(box: Any) -> Any:
  """[1, 4] to [4]; anything else is returned unchanged."""
  try:
    return np.reshape(box, 4) if np.shape(box) == (1, 4) else box
  except ValueError:  # ragged lists, which the prompt check reports
    return box


def _count(name: str, value: Any) -> int:
  try:
    if isinstance(value, str):  # its letters are not prompts
      raise TypeError
    return len(value)
  except TypeError as error:
    raise UserError(f'{name} of type {type(value).__name__}: expected an array of B prompts') from error


def _from_bgr(image: Any) -> np.ndarray:
  """Returns a BGR array with its channels in RGB order."""
  if not hasattr(image, '__array__') or isinstance(image, str | os.PathLike) or not hasattr(image, 'shape'):
    raise UserError(f"image_format 'BGR' with an image of type {type(image).__name__}: expected an array")
  array = np.asarray(image)
  if array.ndim != 3 or array.shape[2] not in (3, 4):
    raise UserError(f"image_format 'BGR' with an array of shape {array.shape}: expected [h, w, 3] or [h, w, 4]")
  return array[..., [2, 1, 0, 3][: array.shape[2]]]
