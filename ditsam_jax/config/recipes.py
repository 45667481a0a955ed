"""One recipe per kind of data, and a table of differences, whose rows name the `--config=` and configs/ files."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from ditsam_jax import fields
from ditsam_jax.config.run import DataConfig, RunConfig
from ditsam_jax.data import datasets
from ditsam_jax.data.shapes import ScenesConfig
from ditsam_jax.errors import UserError
from ditsam_jax.models import config as models

# The release trains its ablations for 25 epochs, still with 3 epochs of warm-up.
_SHORT = {'epochs': 25.0, 'optimizer.warmup_share': 3 / 25}


@dataclasses.dataclass(frozen=True)
class Row:
  """One row of TABLE: how a config differs from the recipe."""

  about: str
  changes: Mapping[str, Any]  # on every data set, by dotted field
  photographs: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # on all data sets except shapes
  model: Any = models.vit_b  # the preset for photographs
  default: str = 'refcoco'  # data set
  shapes_alone: bool = False


TABLE: dict[str, Row] = {
  'ldit': Row(
    "L-DIT: every block of SAM's image encoder gets its own projection of the text", {'model.fusion': 'layer_wise'}
  ),
  'edit': Row('E-DIT: the text enters at the first block and travels through all of them', {'model.fusion': 'e2e'}),
  'sam_text': Row(
    'The text baseline: the sentence prompts the mask decoder alone', {'model.fusion': 'none'}, photographs=_SHORT
  ),
  'ldit_vith': Row(
    "L-DIT on SAM's ViT-H; the text is projected to its width first",
    {'model.fusion': 'layer_wise_vith'},
    photographs=_SHORT,
    model=models.vit_h,
  ),
  'ldit_frozen_text': Row(
    'Ablation: L-DIT with BERT frozen', {'model.fusion': 'layer_wise', 'freeze': 'text_encoder'}, photographs=_SHORT
  ),
  'ldit_token': Row(
    'Ablation: L-DIT with learnt tokens added to the text instead of projections', {'model.fusion': 'token_layer_wise'}
  ),
  'edit_token': Row(
    'Ablation: E-DIT with learnt tokens added between blocks instead of projections', {'model.fusion': 'e2e_token'}
  ),
  'cross_attention': Row(
    'Ablation: before each block, text attends to the slots of the previous one',
    {'model.fusion': 'cross_attention'},
    photographs=_SHORT,
  ),
  'sam_text_add_2': Row(
    'Ablation: the text baseline with 2 more blocks in the mask decoder',
    {'model.fusion': 'none', 'model.mask_decoder.depth': 4},
    photographs=_SHORT,
  ),
  'sam_text_add_4': Row(
    'Ablation: the text baseline with 4 more blocks in the mask decoder',
    {'model.fusion': 'none', 'model.mask_decoder.depth': 6},
    photographs=_SHORT,
  ),
  'finetune': Row(
    'Your own pictures, hundreds to thousands of samples: the model is that of init_from',
    {
      'init_from': '',
      'model': None,
      'scan': True,
      'data.batch_size': 16,
      'data.augmentation.scale_steps': 3,
      'data.augmentation.scale_stride': 16,
      'data.augmentation.jitter_probability': 0.5,
      'data.augmentation.jitter_strength': 0.2,  # more makes another colour of it
      'data.augmentation.unbiased_masks': True,
      'optimizer.name': 'adam',
      'optimizer.learning_rate': 3e-5,
      'optimizer.clip_norm': 1.0,
      'optimizer.warmup_share': 0.05,
      'epochs': 30.0,
      'total_steps': None,
      'loss.dice': 1.0,
      'loss.iou': 0.05,
      'ema': 0.99,  # about the last hundred updates
      'eval_every': 100,
      'eval_samples': 500,
      'checkpoint_every': 100,
      'final_split': 'val',
    },
  ),
  'sam_pretrain': Row(
    'A tiny SAM from scratch on shapes, without text',
    {
      'task': 'prompts',
      'init_from': '',
      'rounds': 4,
      'model.align_corners': False,  # as SAM, unlike DIT
      'model.fusion': 'none',
      'model.text_encoder': None,
      'data.batch_size': 32,  # images, each with objects_per_image prompts
      'data.prompts.point': 0.45,
      'data.prompts.box': 0.3,
      'data.prompts.background': 0.15,
      'loss.iou': 0.25,  # predicted IoU ranks the three masks and filters masks in `everything`
      'total_steps': 2800,
      'eval_every': 0,
      'optimizer.warmup_share': 1 / 14,
    },
    default='shapes',
    shapes_alone=True,
  ),
}

# For shapes: trains in minutes on two CPU cores.
_SMALL = {
  'init_from': 'sam_shapes',  # shipped, in place of SAM's official weights
  'scan': False,  # six blocks compile quickly
  'data.threads': 1,
  'data.in_memory': True,
  'data.augmentation.scale_steps': 1,
  'data.augmentation.jitter_probability': 0.0,  # expressions refer to colours
  'data.augmentation.unbiased_masks': True,  # half a pixel is much for small images
  'optimizer.name': 'muon',  # in a trial, 250 steps were as good as 500 with Adam
  'optimizer.learning_rate': 3e-3,
  'optimizer.clip_norm': 1.0,
  'optimizer.warmup_share': 0.1,
  'epochs': None,
  'total_steps': 1000,
  'loss.dice': 1.0,
  'loss.iou': 0.05,
  'ema': 0.998,
  'eval_every': 250,
  'eval_samples': 512,
  'checkpoint_every': 250,
  'final_split': 'test',
}


def recipe(data_set: str, model: models.DitSamConfig | None = None) -> ConfigDict:
  """Returns the config of L-DIT on a data set: the DIT release's recipe for photographs, a short one for shapes.

  Lengths that are None are derived from the data later, see config/lengths.py.

  Args:
    data_set: a name, optionally with a partition: 'refcocog/google'.
    model: replaces ViT-B; ignored for shapes, which have their own model.

  Raises:
    UserError: the data set is unknown.
  """
  small = datasets.is_small(data_set)
  data = DataConfig(dataset=data_set, scenes=ScenesConfig() if small else None)
  config = as_config_dict(RunConfig(data=data, model=models.tiny() if small else model or models.vit_b()))
  if small:
    _change(config, _SMALL)
  return config


def named(name: str, data_set: str = '') -> ConfigDict:
  """Returns the config with a name in TABLE, such as 'ldit', on a data set ('' for the row's default).

  Raises:
    UserError: the name or data set is unknown.
  """
  if name not in TABLE:
    raise UserError(
      f'config {fields.shown(name)} is unknown; {fields.did_you_mean(name, TABLE)}choose one of {", ".join(TABLE)}, '
      f'or give a file, such as configs/ldit.py'
    )
  row = TABLE[name]
  data_set = data_set or row.default
  small = datasets.is_small(data_set)
  if not small and row.shapes_alone:
    raise UserError(
      f'config {name!r} is for shapes only, not for {data_set!r}: on photographs start from an official SAM '
      f'(python convert/torch_to_flax.py --input=sam_vit_b_01ec64.pth --output=models/sam)'
    )
  config = recipe(data_set, row.model())
  _change(config, row.changes)
  if not small:
    _change(config, row.photographs)
  return config


def as_config_dict(config: Any) -> ConfigDict:
  """Converts a dataclass of declared fields to a ConfigDict; a None in place of a number keeps its type."""
  values = {}
  for name, field in fields.fields(type(config)).items():
    value = getattr(config, name)
    if field.group:
      values[name] = None if value is None else as_config_dict(value)
    elif value is None:
      values[name] = config_dict.placeholder(field.kind.python)
    else:  # lists read alike from Python, JSON and the command line
      values[name] = list(value) if isinstance(value, tuple) else value
  return ConfigDict(values)


def _change(config: ConfigDict, changes: Mapping[str, Any]) -> None:
  for path, value in changes.items():
    *parents, name = path.split('.')
    node: Any = config
    for parent in parents:
      node = node[parent]
    node[name] = value
