"""Prediction: images and prompts in, masks out."""

import collections
import concurrent.futures
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ditsam_jax.errors import UserError
from ditsam_jax.geometry.letterbox import logit
from ditsam_jax.inference.engine import Engine, Piece, Row, Sentence
from ditsam_jax.inference.framing import Framed, frame
from ditsam_jax.inference.prompts import Prompt, check_text, checked, point_tokens
from ditsam_jax.inference.reading import read_ahead
from ditsam_jax.inference.results import Prediction
from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.models.ditsam import DitSam
from ditsam_jax.models.weights import dtype_named
from ditsam_jax.storage import saved_model
from ditsam_jax.storage.description import check_words, vocabulary_file, warn_if_fresh
from ditsam_jax.storage.image_files import read_image
from ditsam_jax.tokenization import Tokenizer

Asked = str | Prompt  # a text alone, or any prompt

_AHEAD = 2  # batches computed ahead while the caller handles earlier results
_READERS = min(4, os.cpu_count() or 1)  # threads that read images and fit them into the model's square
_TEXTS_KEPT = 4096


class _Tokenized(NamedTuple):
  sentence: Sentence
  cut: str
  unknown: tuple[str, ...]


class Segmenter:
  """Segments objects from sentences, points, boxes and masks, in any combination.

      segmenter = Segmenter('shapes')
      result = segmenter('scene.png', 'the red circle')
      result.overlay().save('circle.png')

      view = segmenter.look('scene.png')
      view(points=[[40, 60]]), view('the red circle', box=[10, 10, 90, 90])

  Programs are compiled once for one prompt and once for `batch_size` prompts, at first use; image sizes don't matter.
  All devices of this host share a batch. Threads may share a segmenter.
  """

  checkpoint: str | os.PathLike | None = None  # where the model was loaded from

  def __init__(
    self, checkpoint: str | os.PathLike = 'shapes', *, batch_size: int = 8, dtype: str | None = 'auto'
  ) -> None:
    """Loads a model.

    Args:
      checkpoint: a saved model's folder, or the name of a shipped model.
      batch_size: prompts per device and batch, for lists and streams.
      dtype: 'float32', 'bfloat16', or 'auto': bfloat16 on TPUs and GPUs, float32 on CPUs.

    Raises:
      UserError: the model does not exist, the type is unknown, or `batch_size` is not a positive whole number.
    """
    _check_batch_size(batch_size)
    self._set_up(*load_with_tokenizer(checkpoint, dtype), batch_size, dtype)
    self.checkpoint = checkpoint

  @classmethod
  def from_model(
    cls, model: DitSam, tokenizer: Tokenizer | None = None, *, batch_size: int = 8, dtype: str | None = 'auto'
  ) -> 'Segmenter':
    """Wraps a model in memory, such as one just trained. Without a tokenizer it accepts no text.

    Raises:
      UserError: as for a saved model, or the tokenizer does not belong to the model.
    """
    _check_batch_size(batch_size)
    segmenter = cls.__new__(cls)
    segmenter._set_up(model, tokenizer, batch_size, dtype)
    return segmenter

  def _set_up(self, model: DitSam, tokenizer: Tokenizer | None, batch_size: int, dtype: str | None) -> None:
    if tokenizer is not None and model.config.text_encoder is not None:
      _check_tokenizer(tokenizer, model.config)
    self.config = model.config
    self.tokenizer = tokenizer
    self.batch_size = batch_size
    self.engine = Engine(model, dtype)
    self._threshold = logit(model.config.mask_threshold)
    self._tokenized = functools.lru_cache(_TEXTS_KEPT)(self._tokenize)

  @property
  def dtype(self) -> str:
    """The compute type, 'float32' or 'bfloat16'."""
    return self.engine.dtype

  def __call__(
    self,
    image: Any,
    text: Asked | list[Asked] | None = None,
    *,
    points: Any = None,
    labels: Any = None,
    box: Any = None,
    mask: Any = None,
    multimask: bool = False,
  ) -> Prediction | list[Prediction]:
    """Segments one image or several.

    Args:
      image: a path, PIL image or array (see `image_files.read_image`), or a list of these.
      text: a sentence, a Prompt, or a list of these; None to prompt without text. Two lists are paired element by
        element; a single item or a list of one is paired with every item of the other list.
      points: see Prompt; combined with each text, like the arguments below.
      labels: see Prompt.
      box: see Prompt.
      mask: see Prompt.
      multimask: see Prompt.

    Returns:
      A Prediction, or a list of Predictions if any argument is a list.

    Raises:
      UserError: an image cannot be read, a prompt is invalid, or two lists differ in length.
    """
    several = isinstance(image, list | tuple), isinstance(text, list | tuple)
    images = list(image) if several[0] else [image]
    prompts = [self.prompt(asked) for asked in _prompts(text, points, labels, box, mask, multimask)]
    if len(images) != len(prompts) and 1 not in (len(images), len(prompts)):
      raise UserError(f'{len(images)} images with {len(prompts)} prompts: expected equal numbers, or one of either')
    if len(images) == 1:
      found = list(self.predict(self._framed(images[0]), prompts))
    else:
      found = self.many(zip(images, prompts * len(images) if len(prompts) == 1 else prompts))
    return found if any(several) else found[0]

  def look(self, image: Any) -> 'View':
    """Reads and encodes an image once, for any number of prompts.

    If sentences enter the image encoder, each new sentence encodes the image again; the last few are cached.
    """
    view = View(self, self._framed(image))
    if not self.config.encodes_text_with_image:
      self.engine.embedding(view.framed.square)
    return view

  def many(self, requests: Iterable[tuple[Any, Asked]]) -> list[Prediction]:
    """Segments (image, prompt) pairs in batches, all in memory; see `__call__`."""
    requests = list(requests)
    return list(self._stream(requests, 1 if len(requests) == 1 else self.batch_size))

  def stream(self, requests: Iterable[tuple[Any, Asked]]) -> Iterator[Prediction]:
    """Segments more (image, prompt) pairs than fit in memory, in order.

    Reads and computes a few batches ahead of the results. Consecutive pairs with the same image object or path share
    its encoding, unless sentences enter the image encoder.

    Raises:
      UserError: a pair is invalid, see `__call__`. The results of all earlier pairs come first.
    """
    return self._stream(requests, self.batch_size)

  def _stream(self, requests: Iterable[tuple[Any, Asked]], at_once: int) -> Iterator[Prediction]:
    waiting = collections.deque()
    size = at_once * len(self.engine.devices)
    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
      prepared = read_ahead(requests, self.prompt, self._framed, pool, ahead=size)
      batch, failure = [None], None
      try:
        while batch and failure is None:
          batch, failure = _next_batch(prepared, size)
          if batch:
            waiting.append((batch, self._start(batch, at_once)))
          if len(waiting) > _AHEAD:
            yield from self._results(*waiting.popleft())
        while waiting:
          yield from self._results(*waiting.popleft())
      finally:
        pool.shutdown(wait=False, cancel_futures=True)
    if failure is not None:
      raise failure

  def prompt(self, asked: Asked, *, may_be_empty: bool = False) -> Prompt:
    """Checks a prompt for this model. Raises UserError if it is invalid, or empty and empty prompts aren't allowed."""
    prompt = checked(Prompt(asked) if isinstance(asked, str) else asked, self.config)
    if prompt.is_empty and not may_be_empty:
      raise UserError('an empty prompt: expected a text, points, a box or a mask')
    if prompt.text is not None and self.tokenizer is None:
      raise UserError(f'text {prompt.text!r}: there is no tokenizer; pass one to from_model')
    return prompt

  def predict(self, framed: Framed, prompts: list[Prompt], *, at_once: int | None = None) -> Iterator[Prediction]:
    """Yields the predictions of checked prompts for one image, computed in one or more batches."""
    at_once = at_once or (1 if len(prompts) == 1 else self.batch_size)
    batch = [(framed, prompt) for prompt in prompts]
    return self._results(batch, self._start(batch, at_once, one_image=True))

  def _framed(self, image: Any) -> Framed:
    return frame(read_image(image), self.config)

  def _start(self, batch: list[tuple[Framed, Prompt]], at_once: int, one_image: bool = False) -> list[Piece]:
    return self.engine.run([self.row(*request) for request in batch], at_once, one_image=one_image)

  def row(self, framed: Framed, prompt: Prompt) -> Row:
    """Returns the engine's input for a prompt on an image."""
    points = point_tokens(prompt, framed.scale, framed.offset)
    return Row(framed.square, self.sentence(prompt), points, prompt.mask, prompt.multimask)

  def sentence(self, prompt: Prompt) -> Sentence | None:
    """The tokens of a checked prompt's text."""
    return None if prompt.text is None else self._tokenized(prompt.text).sentence

  def _tokenize(self, text: str) -> _Tokenized:
    assert self.tokenizer is not None  # see `prompt`
    ids, token_mask = self.tokenizer([text])
    return _Tokenized(Sentence(ids[0], token_mask[0]), self.tokenizer.cut(text), tuple(self.tokenizer.unknown(text)))

  def begin(self, batch: list[tuple[Framed, Prompt]], at_once: int) -> list[Callable[[], Prediction]]:
    """Starts the computation of checked prompts, each on an image of its own, and does not wait for it.

    Args:
      batch: images and prompts, see `prompt`; prompts of one kind (see `engine.Row.kind`) share programs.
      at_once: batch size of a program.

    Returns:
      One function per prompt, which waits for the device and returns the prediction at the image's size. They may be
      called from any thread, in any order.
    """
    pieces = self._start(batch, at_once)
    found = {place: (piece, i) for piece in pieces for i, place in enumerate(piece.rows)}
    return [functools.partial(self._finish, *request, *found[place]) for place, request in enumerate(batch)]

  def _results(self, batch: list[tuple[Framed, Prompt]], pieces: list[Piece]) -> Iterator[Prediction]:
    """Waits for the pieces of a batch and yields its predictions in order."""
    found = {place: (piece, i) for piece in pieces for i, place in enumerate(piece.rows)}
    for place, (framed, prompt) in enumerate(batch):
      yield self._finish(framed, prompt, *found[place])

  def _finish(self, framed: Framed, prompt: Prompt, piece: Piece, i: int) -> Prediction:
    # JAX keeps the host's copy of an array; a view would keep the whole batch.
    low_res, scores = np.asarray(piece.logits)[i].copy(), np.asarray(piece.iou)[i].copy()
    logits = framed.own_size(low_res)
    read = None if prompt.text is None else self._tokenized(prompt.text)
    return Prediction(
      prompt,
      framed.image,
      logits > self._threshold,
      scores,
      logits,
      low_res,
      read.cut if read else '',
      read.unknown if read else (),
    )


class View:
  """An encoded image; call it with prompts."""

  def __init__(self, segmenter: Segmenter, framed: Framed) -> None:
    self._segmenter = segmenter
    self.framed = framed

  @property
  def image(self) -> np.ndarray:
    """uint8 [h, w, 3]."""
    return self.framed.image

  def __call__(
    self,
    text: Asked | list[Asked] | None = None,
    *,
    points: Any = None,
    labels: Any = None,
    box: Any = None,
    mask: Any = None,
    multimask: bool = False,
  ) -> Prediction | list[Prediction]:
    """Segments the image; a list of prompts returns a list. See `Segmenter.__call__`."""
    prompts = [self._segmenter.prompt(asked) for asked in _prompts(text, points, labels, box, mask, multimask)]
    found = list(self._segmenter.predict(self.framed, prompts))
    return found if isinstance(text, list | tuple) else found[0]

  def __repr__(self) -> str:
    height, width = self.framed.size
    return f'<View of an image of {width} x {height}>'


def load_with_tokenizer(checkpoint: str | os.PathLike, dtype: str | None) -> tuple[DitSam, Tokenizer | None]:
  """Loads a saved model, and its tokenizer if it accepts text. Raises UserError, checking `dtype` first."""
  if dtype is not None:
    dtype_named(dtype, 'cpu')
  model = saved_model.load(checkpoint)
  warn_if_fresh(checkpoint)
  if model.config.text_encoder is None:
    return model, None
  return model, Tokenizer(vocabulary_file(checkpoint), model.config.max_text_tokens, kept=_TEXTS_KEPT)


def _prompts(text, points, labels, box, mask, multimask) -> list[Prompt]:
  """Returns one prompt per item of `text`, or a single one if it is not a list."""
  others = {'points': points, 'labels': labels, 'box': box, 'mask': mask, 'multimask': multimask}
  given = [name for name, value in others.items() if value is not None and value is not False]

  def one(asked: Asked | None) -> Prompt:
    if not isinstance(asked, Prompt):
      return Prompt(asked, **others)
    if given:
      raise UserError(f'a Prompt with {", ".join(given)} as separate arguments: expected everything in the Prompt')
    return asked

  if not isinstance(text, list | tuple):
    return [one(text)]
  for asked in text:
    if not isinstance(asked, Prompt):
      check_text(asked)
  return [one(asked) for asked in text]


def _next_batch(items: Iterator, size: int) -> tuple[list, Exception | None]:
  """Returns at most `size` items, and the exception that ended them early, so earlier results are not lost."""
  batch = []
  try:
    batch.extend(itertools.islice(items, size))
  except Exception as error:
    return batch, error
  return batch, None


def _check_batch_size(batch_size: int) -> None:
  if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
    raise UserError(f'batch size {batch_size!r}: expected a whole number of at least 1')


def _check_tokenizer(tokenizer: Tokenizer, config: DitSamConfig) -> None:
  """Raises UserError if a tokenizer belongs to another model, whose sentences this one would misread."""
  check_words(len(tokenizer.vocabulary), config, tokenizer.vocabulary_file)
  if tokenizer.max_tokens != config.max_text_tokens:
    raise UserError(
      f'a tokenizer with max_tokens {tokenizer.max_tokens}: the model reads {config.max_text_tokens}; pass its own'
    )
