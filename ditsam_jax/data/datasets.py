"""From a data set's name to its samples and its vocabulary."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ditsam_jax.data import shapes
from ditsam_jax.data.refcoco import catalogue
from ditsam_jax.data.referring import ReferringSource
from ditsam_jax.errors import UserError
from ditsam_jax.storage import saved_model

SHAPES = 'shapes'
REFERRING = tuple(catalogue.SPLIT_BY)
NAMES = (SHAPES, *REFERRING)


def scenes_config(fields: Mapping[str, Any]) -> shapes.ScenesConfig:
  """The scenes that a config or its JSON form describes. Raises UserError on unknown fields or values."""
  values = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
  try:
    return shapes.ScenesConfig(**values)
  except TypeError as error:
    raise UserError(f'data.scenes: {error}') from error


def vocabulary(dataset: str, init_from: str = '') -> Path:
  """The WordPiece vocabulary that a data set's sentences are read with.

  Shapes bring their own; for photographs it is that of the model `init_from` (a name or folder) that training
  starts from. Raises UserError where that has none.
  """
  if dataset == SHAPES:
    return Path(shapes.__file__).parent / 'vocab.txt'
  if init_from:
    if saved_model.read_config(init_from).text_encoder is not None:
      return saved_model.vocabulary_file(init_from)
  lacking = f'config.init_from={init_from!r} has none' if init_from else 'config.init_from names no model'
  raise UserError(
    f'data set {dataset!r} needs the vocabulary and weights of a text encoder, and {lacking}; convert a SAM with '
    f'BERT (python convert/torch_to_flax.py --input=sam_vit_b_01ec64.pth --text-encoder=bert-base-uncased '
    f'--fusion=layer_wise --output=models/start) and pass --config.init_from=models/start'
  )


def open_split(
  dataset: str, data_dir: str | Path, split: str, *, scenes: Mapping[str, Any] | None = None, in_memory: bool = False
) -> ReferringSource:
  """Samples of one split; shapes are made on the first call.

  Args:
    dataset: one of NAMES; 'refcocog/google' for another split-by than the usual one.
    data_dir: where prepared data sets live.
    split: train, val, test (shapes, refcocog), testA, testB (the others).
    scenes: changes to the defaults of shapes.ScenesConfig.
    in_memory: keep decoded pixels; for small images that are visited many times.

  Raises:
    UserError: unknown data set or split, or one that has to be prepared first.
  """
  if dataset.partition('/')[0] in REFERRING:
    return _open_referring(dataset, data_dir, split, in_memory)
  if dataset != SHAPES:
    raise UserError(f'data set {dataset!r} is unknown; choose one of {", ".join(NAMES)}')
  if split not in shapes.SPLITS:
    raise UserError(f'split {split!r} is unknown; {dataset} has {", ".join(shapes.SPLITS)}')
  builder = shapes.prepare(data_dir, scenes_config(scenes or {}))
  return ReferringSource(builder.data_dir, split, in_memory=in_memory)


def _open_referring(dataset: str, data_dir: str | Path, split: str, in_memory: bool) -> ReferringSource:
  name, split_by = catalogue.parse(dataset)
  splits = catalogue.SPLITS[name, split_by]
  if split not in splits:
    raise UserError(f'split {split!r} is unknown; {name} ({split_by}) has {", ".join(splits)}')
  folder = catalogue.folder(data_dir, name, split_by)
  theirs = catalogue.tfds_ref_coco(data_dir, name, split_by)
  if theirs and not folder.exists():
    return ReferringSource(theirs, 'validation' if split == 'val' else split, in_memory=in_memory)
  if not (folder / 'dataset_info.json').exists():
    raise UserError(
      f'data set {name!r} ({split_by}) is not prepared in {str(data_dir)!r}; with the official refs and '
      f"instances.json in ANNOTATIONS/{name}/ and COCO's train2014 images in IMAGES/ run: "
      f'python -m ditsam_jax.prepare --dataset={name} --split-by={split_by} --annotations=ANNOTATIONS '
      f'--images=IMAGES --data-dir={data_dir}'
    )
  return ReferringSource(folder, split, in_memory=in_memory)
