"""TFDS builder of the shapes data set, and `prepare`, which generates it once."""

import contextlib
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

from ditsam_jax.data import shards
from ditsam_jax.data.preparation.writer import staged
from ditsam_jax.data.records import damaged, quiet_tfds, record_features, writing_to
from ditsam_jax.data.shapes.expressions import candidates, describe, hardest_first
from ditsam_jax.data.shapes.phrases import MOST_TARGETS, Phrase, absent_phrases, phrases, tokens
from ditsam_jax.data.shapes.phrasings import from_template
from ditsam_jax.data.shapes.rephrasing import LONGEST, rephrase
from ditsam_jax.data.shapes.scenes import MOST_OBJECTS, SPLITS, Scene, ScenesConfig, make_scene, scene_rng
from ditsam_jax.data.workers import check_processes, map_ordered
from ditsam_jax.errors import UserError
from ditsam_jax.storage.bucket import AnyPath, BucketPath
from ditsam_jax.storage.paths import any_path
from ditsam_jax.terminal import printable, progress

_SPLIT_STRIDE = 1_000_000  # keeps the image ids of different splits apart
_SCENE_TRIES = 100
# JPEG takes a third of PNG's size and decoding time here. Without chroma subsampling, edges stay sharp.
_IMAGE_OPTIONS = (cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
# Trying all PNG filters would take four times as long.
_MASK_OPTIONS = (cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE)
_FEW_SCENES = 1000  # fewer scenes are generated in the time that worker processes take to start
_AT_ONCE = 50  # scenes per work item
_MOST_WORKERS = 8  # more cannot help, because a single process writes all records


class ShapesConfig(tfds.core.BuilderConfig):
  """A `ScenesConfig` for TFDS; its name ends in a hash, so each variant has its own folder."""

  def __init__(self, scenes: ScenesConfig):
    text = json.dumps(dataclasses.asdict(scenes), sort_keys=True)
    name = f'{scenes.image_size}px_{hashlib.sha256(text.encode()).hexdigest()[:8]}'
    super().__init__(name=name, description=text)
    self.scenes = scenes


class Shapes(tfds.core.GeneratorBasedBuilder):
  """Scenes of 4 to 8 coloured shapes with masks and English referring expressions, generated, not downloaded."""

  VERSION = tfds.core.Version('1.0.0')
  # Nothing is downloaded, and TFDS' checksum lookup needs a package that it does not install.
  url_infos = None

  def __init__(self, *, scenes: ScenesConfig = ScenesConfig(), workers: int = 0, **kwargs: Any):
    self.scenes, self._workers = scenes, workers
    self.on_record: Callable[[], Any] = lambda: None  # called after each record
    super().__init__(config=ShapesConfig(scenes), file_format='array_record', **kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self, description=self.__doc__, features=record_features('jpeg'), disable_shuffling=True
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
    del dl_manager
    return {split: self._generate_examples(split) for split in SPLITS}

  def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
    for index, record in enumerate(_records(self.scenes, split, self._workers)):
      yield index, record
      self.on_record()


def _records(config: ScenesConfig, split: str, workers: int) -> Iterator[dict[str, Any]]:
  number = getattr(config, split)
  parts = [range(first, min(first + _AT_ONCE, number)) for first in range(0, number, _AT_ONCE)]
  workers = workers if workers >= 2 and number >= _FEW_SCENES else 0
  with contextlib.closing(map_ordered(functools.partial(_make_records, config, split), parts, workers)) as made:
    yield from itertools.chain.from_iterable(made)


def _make_records(config: ScenesConfig, split: str, indices: range) -> list[dict[str, Any]]:
  return [make_record(config, split, index) for index in indices]


def described_scene(config: ScenesConfig, split: str, index: int) -> tuple[Scene, list[list[tuple[str, str]]]]:
  """Generates scene `index` of `split` and at least one (expression, kind) for each of its shapes."""
  rng = scene_rng(config, split, index)
  for _ in range(_SCENE_TRIES):
    scene = make_scene(config, rng)
    expressions = describe(scene.shapes, config.image_size, config.expressions_per_object, rng)
    if all(expressions):
      return scene, expressions
  raise UserError(
    f'scenes: none of {_SCENE_TRIES} scenes with up to {config.max_shapes} shapes has an expression for '
    'every shape; use fewer shapes, or more kinds_per_scene and colours_per_scene'
  )


def make_record(config: ScenesConfig, split: str, index: int) -> dict[str, Any]:
  """Generates scene `index` of `split` as a TFDS example with encoded images.

  In training, phrases are further objects of the category 'phrase': their mask is the union of what they name.
  """
  scene, expressions = described_scene(config, split, index)
  named = []
  if split == 'train':
    # Streams of their own: scenes, expressions and phrases stay as they are without what the config adds.
    rng, of_absent, of_order, of_template = (
      np.random.default_rng((config.seed, SPLITS.index(split), index, n)) for n in (1, 2, 3, 4)
    )
    expressions = _with_orders(scene, expressions, config, of_order)
    expressions = [
      [
        *pairs,
        *_said(rephrase, pairs, config.rephrased_per_object, rng),
        *_said(from_template, pairs, config.templates_per_object, of_template),
      ]
      for pairs in expressions
    ]
    named = _named(scene, _evenly_drawn(scene, config, rng), config, rng)
    if config.absent_per_scene:
      absent = absent_phrases(scene.shapes, config.image_size, config.absent_per_scene, of_absent)
      named += _named(scene, absent, config, of_absent)
  image_id = SPLITS.index(split) * _SPLIT_STRIDE + index
  objects = [
    {
      'object_id': image_id * MOST_OBJECTS + i,
      'category': category,
      'mask': _encoded('.png', mask.view(np.uint8) * 255, _MASK_OPTIONS),
      'expressions': [text for text, _ in described],
      'kinds': [kind for _, kind in described],
    }
    for i, (category, mask, described) in enumerate(
      [*zip((shape.category for shape in scene.shapes), scene.masks, expressions), *named]
    )
  ]
  image = _encoded('.jpg', scene.image[..., ::-1], _IMAGE_OPTIONS)
  return {'image': image, 'image_id': image_id, 'objects': objects}


def _with_orders(
  scene: Scene, expressions: list[list[tuple[str, str]]], config: ScenesConfig, rng: np.random.Generator
) -> list[list[tuple[str, str]]]:
  """Adds expressions of the kind 'order', which are the hardest."""
  if not config.orders_per_object:
    return expressions
  found = [
    [(text, 'order') for text in hardest_first(by_kind['order'])]
    for by_kind in candidates(scene.shapes, config.image_size, rng)
  ]
  return [
    [*pairs, *[pair for pair in more if pair not in pairs][: config.orders_per_object]]
    for pairs, more in zip(expressions, found)
  ]


def _said(
  say: Callable[[str, np.random.Generator], str | None],
  pairs: list[tuple[str, str]],
  count: int,
  rng: np.random.Generator,
) -> list[tuple[str, str]]:
  """Says the (expression, kind) pairs of an object in other words, in turn, `count` in all.

  Drops texts of too many tokens, and pairs for which `say` returns None.
  """
  turns = itertools.islice(itertools.cycle(pairs), count)
  return [
    (text, kind)
    for text, kind in ((say(text, rng), kind) for text, kind in turns)
    if text and tokens(text, rephrased=True) <= LONGEST
  ]


def _evenly_drawn(scene: Scene, config: ScenesConfig, rng: np.random.Generator) -> list[Phrase]:
  """Draws phrases evenly over the number of shapes they name."""
  if not config.phrases_per_scene:
    return []
  found = phrases(scene.shapes, config.image_size, max(config.phrases_per_scene, MOST_TARGETS + 1), rng)
  return [found[place] for place in rng.permutation(len(found))[: config.phrases_per_scene].tolist()]


def _named(
  scene: Scene, chosen: list[Phrase], config: ScenesConfig, rng: np.random.Generator
) -> list[tuple[str, np.ndarray, list[tuple[str, str]]]]:
  """Returns category, mask, and (text, kind) pairs of phrases."""
  named = []
  for phrase in chosen:
    mask = np.zeros(scene.masks.shape[1:], bool)
    for target in phrase.targets:
      mask |= scene.masks[target]
    pairs = [(phrase.text, 'phrase')]
    named.append(('phrase', mask, pairs + _said(rephrase, pairs, min(config.rephrased_per_object, 1), rng)))
  return named


def _encoded(extension: str, image: np.ndarray, options: tuple[int, ...]) -> io.BytesIO:
  """Encodes an image, uint8, grey or BGR."""
  return io.BytesIO(cv2.imencode(extension, image, options)[1].tobytes())


def prepare(data_dir: str | os.PathLike, scenes: ScenesConfig = ScenesConfig(), workers: int | None = None) -> Shapes:
  """Returns the builder of the data set under `data_dir`; generates the data if it does not exist.

  The folder is renamed when it is complete, so an interrupted preparation is never used.

  Args:
    data_dir: folder of prepared data sets.
    scenes: the appearance of scenes.
    workers: number of processes that generate scenes, by default one per core. Calling scripts then need
      `if __name__ == '__main__'`; 0 uses the current process. Records do not depend on it.

  Raises:
    UserError: the folder cannot be written, or contains something else or damaged data.
  """
  workers = min(os.cpu_count() or 1, _MOST_WORKERS) if workers is None else workers
  check_processes(workers, 'workers')
  with writing_to(data_dir), quiet_tfds():
    Path(data_dir).mkdir(parents=True, exist_ok=True)
    builder = _builder(scenes, workers, data_dir)
    _make(builder)
  return builder


def located(data_dir: str | os.PathLike, scenes: ScenesConfig = ScenesConfig()) -> AnyPath:
  """Like `prepare`, but returns the folder of the data set, which may be in a bucket."""
  path = any_path(data_dir)
  if not isinstance(path, BucketPath):
    return Path(prepare(path, scenes).data_dir)
  folder = path / 'shapes' / ShapesConfig(scenes).name / str(Shapes.VERSION)
  with writing_to(data_dir):
    if not (folder / shards.LAST).is_file():
      with staged(folder) as stage:
        prepare(stage, scenes)
  return folder


def _builder(scenes: ScenesConfig, workers: int, data_dir: str | os.PathLike) -> Shapes:
  folder = Path(data_dir, 'shapes', ShapesConfig(scenes).name)
  info = folder / str(Shapes.VERSION) / 'dataset_info.json'
  if info.exists() and not info.is_file():  # TFDS would block on a pipe
    raise UserError(damaged(folder, f'{info.name} is not a file'))
  try:
    return Shapes(scenes=scenes, workers=workers, data_dir=os.fspath(data_dir))
  except Exception as error:  # TFDS reads existing data, and raises various exceptions if it is damaged
    if not folder.exists():
      raise
    raise UserError(damaged(folder, printable(error, 150))) from error


def _make(builder: Shapes) -> None:
  folder = Path(builder.data_dir)
  if folder.exists():
    if not (folder / 'dataset_info.json').is_file() or set(builder.info.splits) != set(SPLITS):
      raise UserError(damaged(folder, f'it is not a folder with a dataset_info.json of {", ".join(SPLITS)}'))
    return
  total = sum(getattr(builder.scenes, split) for split in SPLITS)
  try:
    with (
      tempfile.TemporaryDirectory() as unused,
      progress(total, 'making shapes', 'scenes') as bar,
    ):
      builder.on_record = bar.update
      builder.download_and_prepare(download_dir=unused)
  except OSError:
    # Another process may have completed the same data set in the meantime.
    if not (Path(builder.data_dir) / 'dataset_info.json').exists():
      raise
    builder.info.read_from_directory(builder.data_dir)
