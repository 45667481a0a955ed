"""Interactive prediction: one image, then clicks, boxes, masks and sentences, as often as one likes."""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from ditsam_jax.data.prompts import BOTTOM_RIGHT, NEGATIVE, PADDING, POSITIVE, TOP_LEFT
from ditsam_jax.errors import UserError
from ditsam_jax.geometry.letterbox import Letterbox, letterbox, logit, normalise, own_size_logits
from ditsam_jax.inference.segmenter import check_text
from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.models.ditsam import DitSam
from ditsam_jax.storage import saved_model
from ditsam_jax.storage.image_files import read_image
from ditsam_jax.tokenization import Tokenizer

ABSENT = -2  # label of a filling token, which nothing attends to; SAM's padding (-1) is a token that counts
FEWEST_TOKENS = 8  # tokens cost next to nothing beside the image's, programs cost seconds


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
  """What a prompt means in an image: M masks, 3 with `multimask`, else 1.

  Attributes:
    masks: bool [M, h, w], at the image's own size.
    logits: f32 [M, h, w]; the masks are where they exceed the model's threshold.
    iou: f32 [M], the model's own estimates of the masks' IoU; trained towards 0..1, not bound to it.
    low_res_logits: f32 [M, S/4, S/4] in the model's square of side S; one of them is a mask prompt.
  """

  masks: np.ndarray = dataclasses.field(repr=False)
  logits: np.ndarray = dataclasses.field(repr=False)
  iou: np.ndarray
  low_res_logits: np.ndarray = dataclasses.field(repr=False)


class _Sentence(NamedTuple):
  text: str
  features: jax.Array  # [1, T, Ct]
  embedding: jax.Array  # [1, h, w, C], of the image with this sentence


@dataclasses.dataclass
class _Picture:
  """The image and what was computed of it so far; a new image is a new object, so nothing old can stay behind."""

  size: tuple[int, int]  # height, width of the image
  square: np.ndarray  # f32 [S, S, 3], what the model sees
  box: Letterbox  # where the image lies in it
  embedding: jax.Array | None = None  # [1, h, w, C], of the image alone
  sentence: _Sentence | None = None  # the last one


class _Programs(NamedTuple):
  """The parts of the model, compiled each for itself."""

  read: Callable  # token ids and mask -> text features
  look: Callable  # square, text features or None -> image embedding
  decode: Callable  # image embedding and prompts -> logits in the square, IoU, low-resolution logits


class SamPredictor:
  """Segments one image by prompts: Meta's `segment_anything.SamPredictor`, with sentences for models that read them.

      predictor = SamPredictor('sam_shapes')
      predictor.set_image('scene.png')
      first = predictor.predict(points=[[40, 60]], labels=[1])
      better = predictor.predict(points=[[40, 60], [80, 20]], labels=[1, 0], mask=first.low_res_logits[0])

  The image is encoded once, every prompt costs the decoder only. For models in which the text goes through the
  image encoder, each new sentence encodes the image again; prompts that keep the last sentence do not.

  Plain SAM prepares images and brings masks back as Meta's code does: long side at the model's, padding on the right
  and at the bottom. Models with a text encoder do both as `Segmenter`, the way they were trained: centred.

  The decoder is compiled once a prompt shape. Points, the corners of a box, and the padding point that SAM adds to
  points without a box, are filled up to 8, 16, 32, ... tokens, and the filling is masked out of the attention: up to
  7 points, or 6 and a box, share one program. A mask prompt, a sentence and `multimask` make programs of their own.

  A predictor holds one image: threads take one predictor each.
  """

  def __init__(self, checkpoint: str | os.PathLike) -> None:
    """Loads a model.

    Args:
      checkpoint: the folder of a saved model, or the name of one that comes with the package.

    Raises:
      UserError: there is no model there.
    """
    model = saved_model.load(checkpoint)
    tokenizer = None
    if model.config.text_encoder is not None:
      tokenizer = Tokenizer(saved_model.vocabulary_file(checkpoint), model.config.max_text_tokens)
    self._set_up(model, tokenizer)

  @classmethod
  def from_model(cls, model: DitSam, tokenizer: Tokenizer | None = None) -> 'SamPredictor':
    """Wraps a model in memory, in eval mode; without a tokenizer it takes no text."""
    predictor = cls.__new__(cls)
    predictor._set_up(model, tokenizer)
    return predictor

  def _set_up(self, model: DitSam, tokenizer: Tokenizer | None) -> None:
    self.config = model.config
    self.tokenizer = tokenizer
    self._threshold = logit(model.config.mask_threshold)
    self._programs = _compiled(model)
    self._picture: _Picture | None = None

  def set_image(self, image: Any) -> None:
    """Makes `image` the one that prompts are about.

    Args:
      image: whatever `image_files.read_image` takes.

    Raises:
      UserError: the image cannot be read; the earlier one stays.
    """
    pixels = read_image(image)
    prepare = _top_left if self.config.text_encoder is None else _centred
    picture = _Picture(pixels.shape[:2], *prepare(pixels, self.config))
    if self.config.fusion == 'none':  # else the first prompt tells whether the image is seen with a sentence
      self._embedding(picture)
    self._picture = picture

  def predict(
    self,
    *,
    points: Any = None,
    labels: Any = None,
    box: Any = None,
    mask: Any = None,
    text: str | None = None,
    multimask: bool = False,
  ) -> Prediction:
    """Segments what the prompts mean together; None leaves a prompt out, and all may be left out.

    Args:
      points: [P, 2], (x, y) in pixels of the image; they may lie outside of it.
      labels: [P], 1 for points on the object, 0 for points off it.
      box: [4], (x0, y0, x1, y1) in pixels of the image.
      mask: f32 [S/4, S/4] or [1, S/4, S/4], one of an earlier prediction's `low_res_logits`.
      text: a sentence, for models with a text encoder.
      multimask: three masks for an ambiguous prompt, such as a single click, instead of one.

    Returns:
      Prediction.

    Raises:
      UserError: no image is set, or a prompt is not as above.
    """
    picture = self._picture
    if picture is None:
      raise UserError('no image to predict on; call set_image first')
    tokens, token_labels = _tokens(*_checked_points(points, labels), _checked_box(box))
    mask = _checked_mask(mask, 4 * self.config.grid)
    if text is None:
      features, embedding = None, self._embedding(picture)
    else:
      self._check_text(text)
      _, features, embedding = self._sentence(picture, text)
    tokens = _in_square(tokens, picture)
    outputs = self._programs.decode(
      embedding, tokens[None], token_labels[None], mask, features, multimask=bool(multimask)
    )
    squares, iou, low_res_logits = (np.array(output, np.float32) for output in outputs)
    logits = np.stack([own_size_logits(square, picture.box, picture.size) for square in squares])
    return Prediction(logits > self._threshold, logits, iou, low_res_logits)

  def _embedding(self, picture: _Picture) -> jax.Array:
    if picture.embedding is None:
      picture.embedding = self._programs.look(picture.square[None], None)
    return picture.embedding

  def _sentence(self, picture: _Picture, text: str) -> _Sentence:
    if picture.sentence is None or picture.sentence.text != text:
      features = self._programs.read(*self.tokenizer([text]))
      apart = self.config.fusion == 'none'  # the image encoder does not see the text
      embedding = self._embedding(picture) if apart else self._programs.look(picture.square[None], features)
      picture.sentence = _Sentence(text, features, embedding)
    return picture.sentence

  def _check_text(self, text: str) -> None:
    if self.config.text_encoder is None:
      raise UserError(f'text {text!r}: this model has no text encoder; prompt it with points, a box or a mask')
    if self.tokenizer is None:
      raise UserError(f'text {text!r}: this predictor has no tokenizer; give from_model one')
    check_text(text)


def _compiled(model: DitSam) -> _Programs:
  graph, state = nnx.split(model)
  state = jax.device_put(state)
  config = model.config
  side = (config.image_size, config.image_size)

  @jax.jit
  def read(state, token_ids, token_mask):
    return nnx.merge(graph, state).text_encoder(token_ids, token_mask)

  @jax.jit
  def look(state, images, features):
    return nnx.merge(graph, state).image_encoder(images, features)

  @functools.partial(jax.jit, static_argnames='multimask')
  def decode(state, embedding, points, labels, masks, features, *, multimask):
    model = nnx.merge(graph, state)
    sparse, counted = [model.prompt_encoder.embed_points(points, labels, side)], [labels != ABSENT]
    if features is not None:
      sparse.append(model.text_proj(features))
      counted.append(jnp.ones(features.shape[:2], bool))
    output = model.decode(embedding, sparse, masks, side, multimask, sparse_mask=jnp.concatenate(counted, axis=1))
    low_res, iou, squares = output.low_res_logits, output.iou, output.logits
    if multimask:  # the batch of one goes, or serves as the axis of masks
      low_res, iou, squares = low_res[0], iou[0], squares[0]
    return squares, iou, low_res

  # Weights are an argument: as constants of the programs they would be folded for minutes.
  return _Programs(*(functools.partial(program, state) for program in (read, look, decode)))


def _top_left(pixels: np.ndarray, config: DitSamConfig) -> tuple[np.ndarray, Letterbox]:
  """The model's square f32 [S, S, 3] of uint8 [h, w, 3], and where the image lies: ResizeLongestSide and preprocess."""
  size = config.image_size
  scale = size / max(pixels.shape[:2])
  height, width = (max(1, int(length * scale + 0.5)) for length in pixels.shape[:2])
  resized = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
  square = np.zeros((size, size, 3), np.float32)
  square[:height, :width] = normalise(resized, config.pixel_mean, config.pixel_std)
  return square, Letterbox(0, 0, height, width)


def _centred(pixels: np.ndarray, config: DitSamConfig) -> tuple[np.ndarray, Letterbox]:
  """The same for models that were trained with sentences."""
  return letterbox(pixels, config.image_size, config.pixel_mean, config.pixel_std)


def _in_square(points: np.ndarray, picture: _Picture) -> np.ndarray:
  """Points [N, 2] (x, y) of the image in pixels of the model's square, f32."""
  height, width = picture.size
  box = picture.box
  return (points * (box.width / width, box.height / height) + (box.left, box.top)).astype(np.float32)


def _tokens(points: np.ndarray, labels: np.ndarray, corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Points [P, 2] and corners [0 or 2, 2] as one list, [N, 2] and labels [N], filled up to N = 8, 16, 32, ..."""
  corner_labels = (TOP_LEFT, BOTTOM_RIGHT)[: len(corners)]
  padding = (PADDING,) if len(points) and not len(corners) else ()  # what SAM adds to points without a box
  known = [*labels, *padding, *corner_labels]
  count = max(FEWEST_TOKENS, 1 << (len(known) - 1).bit_length())
  filled = np.zeros((count, 2))
  filled[: len(points)] = points
  filled[len(points) + len(padding) : len(known)] = corners
  return filled, np.array(known + [ABSENT] * (count - len(known)), np.int32)


def _checked_points(points: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
  """f64 [P, 2] and f64 [P]; P is 0 where None was given."""
  if (points is None) != (labels is None):
    missing, given = ('labels', 'points') if labels is None else ('points', 'labels')
    raise UserError(f'{given} without {missing}: expected points [P, 2] with labels [P], 1 on the object and 0 off it')
  if points is None:
    return np.zeros((0, 2)), np.zeros(0)
  points = _numbers('points', points, '[P, 2], an (x, y) each')
  if points.ndim != 2 or points.shape[1] != 2 or not len(points):
    raise UserError(f'points have shape {points.shape}: expected [P, 2], an (x, y) each; None for no points')
  labels = _numbers('labels', labels, '[P], 1 or 0 each')
  if labels.shape != points.shape[:1]:
    raise UserError(f'labels have shape {labels.shape}: expected ({len(points)},), one for each point')
  wrong = labels[(labels != NEGATIVE) & (labels != POSITIVE)]
  if len(wrong):
    raise UserError(f'label {wrong[0]:g}: expected 1 for points on the object and 0 for points off it')
  return points, labels


def _checked_box(box: Any) -> np.ndarray:
  """The corners, f64 [2, 2], or [0, 2] for None."""
  if box is None:
    return np.zeros((0, 2))
  expected = '[4], (x0, y0, x1, y1)'
  corners = _numbers('box', box, expected)
  if corners.shape != (4,):
    raise UserError(f'box has shape {corners.shape}: expected {expected}')
  corners = corners.reshape(2, 2)
  if (corners[0] > corners[1]).any():
    raise UserError(f'box {corners.ravel().tolist()}: expected (x0, y0, x1, y1) with x0 <= x1 and y0 <= y1')
  return corners


def _checked_mask(mask: Any, side: int) -> np.ndarray | None:
  """f32 [1, side, side], or None for None."""
  if mask is None:
    return None
  expected = f"({side}, {side}), one of an earlier prediction's low_res_logits"
  array = _numbers('mask', mask, expected)
  if array.shape not in ((side, side), (1, side, side)):
    raise UserError(f'mask has shape {array.shape}: expected {expected}')
  return array.reshape(1, side, side).astype(np.float32)


def _numbers(name: str, value: Any, expected: str) -> np.ndarray:
  try:
    array = np.asarray(value, np.float64)
  except (TypeError, ValueError) as error:
    raise UserError(f'{name}: not an array of numbers ({error}); expected {expected}') from error
  if not (np.abs(array) <= np.finfo(np.float32).max).all():  # NaN fails too
    raise UserError(f'{name}: NaN or infinite numbers; expected finite ones, {expected}')
  return array
