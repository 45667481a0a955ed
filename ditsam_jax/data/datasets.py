"""From a data set's name to its samples and its vocabulary."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ditsam_jax.command_line import UserError
from ditsam_jax.data import shapes
from ditsam_jax.data.referring import ReferringSource

SHAPES = 'shapes'
REFERRING = ('refcoco', 'refcoco+', 'refcocog', 'grefcoco')
NAMES = (SHAPES, *REFERRING)


def scenes_config(fields: Mapping[str, Any]) -> shapes.ScenesConfig:
  """The scenes that a config or its JSON form describes. Raises UserError on unknown fields or values."""
  values = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
  try:
    return shapes.ScenesConfig(**values)
  except TypeError as error:
    raise UserError(f'data.scenes: {error}') from error


def vocabulary(dataset: str) -> Path:
  """The WordPiece vocabulary that a data set's sentences are read with. Raises UserError where it must be brought."""
  if dataset == SHAPES:
    return Path(shapes.__file__).parent / 'vocab.txt'
  raise UserError(f'data set {dataset!r} needs the vocabulary of bert-base-uncased')


def open_split(dataset: str, data_dir: str | Path, split: str, *, scenes: Mapping[str, Any] | None = None,
               in_memory: bool = False) -> ReferringSource:
  """Samples of one split; shapes are made on the first call.

  Args:
    dataset: one of NAMES.
    data_dir: where prepared data sets live.
    split: train, val, test (shapes).
    scenes: changes to the defaults of shapes.ScenesConfig.
    in_memory: keep decoded pixels; for small images that are visited many times.

  Raises:
    UserError: unknown data set or split, or one that has to be prepared first.
  """
  if dataset in REFERRING:
    raise UserError(f'data set {dataset!r} is not prepared in {str(data_dir)!r}: it needs the official refs, '
                    f'instances.json and the COCO train2014 images, and this version has no command that prepares '
                    f'them yet; the embedded data works now (configs/ldit.py:shapes, --dataset=shapes)')
  if dataset != SHAPES:
    raise UserError(f'data set {dataset!r} is unknown; choose one of {", ".join(NAMES)}')
  if split not in shapes.SPLITS:
    raise UserError(f'split {split!r} is unknown; {dataset} has {", ".join(shapes.SPLITS)}')
  builder = shapes.prepare(data_dir, scenes_config(scenes or {}))
  return ReferringSource(builder.data_dir, split, in_memory=in_memory)
