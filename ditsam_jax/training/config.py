"""The training config: what every number means, for the paper's data sets and for shapes.

The files in configs/ start from `recipe(data_set)` and change what makes them what they are.
"""

import ast
import dataclasses
import difflib
import importlib.util
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ditsam_jax.data.shapes.scenes import ScenesConfig
from ditsam_jax.errors import UserError
from ditsam_jax.models import config as models
from ditsam_jax.models.execution import REMAT
from ditsam_jax.ops.attention.choice import IMPLEMENTATIONS, fastest, why_not

# Objects with expressions in the training splits, which make the release's epochs (gRefCOCO's are not published: as
# RefCOCO's).
_TRAIN_OBJECTS = {'refcoco': 42_404, 'refcoco+': 42_278, 'refcocog': 42_226, 'grefcoco': 42_404}
DATA_SETS = ('shapes', 'refcoco', 'refcoco+', 'refcocog', 'grefcoco')


def recipe(data_set: str) -> ConfigDict:
  """The config of L-DIT on a data set. Raises UserError for an unknown one."""
  if data_set not in DATA_SETS:
    raise UserError(
      f'config: data set {data_set!r} is unknown; choose one of {", ".join(DATA_SETS)} '
      f'(--config=configs/ldit.py:shapes)'
    )
  return _shapes() if data_set == 'shapes' else _release(data_set)


def set_epochs(config: ConfigDict, epochs: int) -> None:
  """The release's length of a training, in its epochs; shapes keeps its own."""
  if config.data.dataset != 'shapes':
    config.total_steps = epochs * _epoch(config.data.dataset, config.data.batch_size)


def _epoch(data_set: str, batch_size: int) -> int:
  """Steps in which every object is seen once; the last, smaller batch counts."""
  return -(-_TRAIN_OBJECTS.get(data_set, _TRAIN_OBJECTS['refcoco']) // batch_size)


def _release(data_set: str) -> ConfigDict:
  """The recipe of the DIT release, as its code runs it."""
  epoch = _epoch(data_set, 64)
  config = ConfigDict()
  config.task = 'text'  # 'text': one sentence an image; 'prompts': points and boxes, to pre-train a SAM
  config.seed = 0  # of initial weights, data order, dropout
  config.init_from = ''  # a saved model whose weights are the start; '' starts from scratch
  config.freeze = ''  # parts not trained: image_encoder, text_encoder, ... or regular expressions, comma-separated
  config.model = as_config_dict(models.vit_b())

  config.data = data = ConfigDict()
  data.dataset = data_set
  data.data_dir = 'data'  # prepared data sets live here
  data.batch_size = 64  # over all devices
  data.objects_per_image = 4  # prompts drawn an image; task 'prompts' only
  data.threads = 8  # that read and augment, per process
  data.processes = 0  # worker processes; 0 reads in the main one
  data.in_memory = False  # keep decoded pixels; for small images that are visited many times
  data.augmentation = ConfigDict(
    dict(
      scale_steps=7,  # long side to one of S - 32 i, i < scale_steps
      scale_stride=32,
      jitter_probability=0.8,
      jitter_strength=0.4,  # brightness, contrast, saturation by factors in 1 -+ this
      flip_probability=0.5,
    )
  )  # with 'left' and 'right' swapped in the text

  config.optimizer = optimizer = ConfigDict()
  optimizer.name = 'adam'  # or 'muon': Muon for the transformers' matrices, Adam for the rest
  optimizer.learning_rate = 1e-4
  optimizer.warmup_start = 1e-7
  optimizer.min_learning_rate = 1e-6
  optimizer.beta1, optimizer.beta2, optimizer.epsilon = 0.9, 0.98, 1e-9
  optimizer.weight_decay = 0.0
  optimizer.clip_norm = 0.15  # of the whole gradient; 0 switches clipping off
  optimizer.warmup_steps = 3 * epoch
  config.total_steps = 40 * epoch  # updates

  config.loss = ConfigDict(dict(bce=1.0, dice=0.0, iou=0.0))  # weights, see training/loss.py
  config.ema = 0.9997  # limit of the average's decay

  config.mesh = ConfigDict(
    dict(data=-1, fsdp=-1, tensor=1)
  )  # devices along each axis, -1: the rest; parallel/sharding.py
  config.dtype = 'float32'  # what the model computes in, or 'bfloat16'; parameters, moments and loss are f32
  config.accumulate = 1  # parts a batch is taken in, one after the other
  config.remat = 'none'  # what the backward pass recomputes of a block: 'none', 'attention' or all of the 'block'
  config.scan = True  # compile one block and loop over it, where all are alike: L-DIT and the text baseline
  config.attention = 'auto'  # how attention is computed, see ops/attention; 'auto' takes the fastest that can

  config.log_every = 50  # steps
  config.eval_every = epoch  # steps; 0 evaluates at the end only
  config.eval_samples = 2000  # expressions of the validation split at each of these
  config.eval_batch_size = 64  # on each host
  config.final_split = 'val'  # evaluated whole at the end
  config.checkpoint_every = epoch  # steps
  config.keep_checkpoints = 2  # the last ones
  config.keep_best = True  # and that of the highest validation mIoU, whose averaged weights are in best/
  config.on_save_failure = 'continue'  # or 'stop': when a checkpoint cannot be written, the disk being full, say
  config.max_skipped = 10  # updates in a row that are left out, loss or gradient not being finite, before the run ends
  return config


def _shapes() -> ConfigDict:
  """Minutes on two CPU cores."""
  config = _release('shapes')
  config.scan = False  # six blocks compile soon
  config.init_from = 'sam_shapes'  # the embedded stand-in for SAM's official weights
  config.model = as_config_dict(models.tiny())
  data = config.data
  data.scenes = ConfigDict(_tuples_to_lists(dataclasses.asdict(ScenesConfig())))  # see data/shapes/scenes.py
  data.threads, data.in_memory = 1, True
  data.augmentation.scale_steps = 1
  data.augmentation.jitter_probability = 0.0  # colours carry the meaning
  optimizer = config.optimizer
  optimizer.name = 'muon'  # in a trial of 250 steps as good as Adam after 500
  optimizer.learning_rate = 3e-3
  optimizer.clip_norm = 1.0
  optimizer.warmup_steps = 100
  config.total_steps = 1000
  config.loss = ConfigDict(dict(bce=1.0, dice=1.0, iou=0.05))
  config.ema = 0.998
  config.eval_every = 250
  config.eval_samples = 512
  config.checkpoint_every = 250
  config.final_split = 'test'
  return config


def as_config_dict(model: models.DitSamConfig) -> ConfigDict:
  """A model's config as fields that the command line can change."""
  return ConfigDict(_tuples_to_lists(model.to_dict()))


def model_config(config: ConfigDict) -> models.DitSamConfig:
  """The model that `config.model` describes. Raises UserError, naming the field."""
  try:
    return models.DitSamConfig.from_dict(json.loads(config.model.to_json_best_effort()))
  except (ValueError, TypeError) as error:
    raise UserError(f'config: {error}') from error


def attention_for(name: str, model: models.DitSamConfig, platform: str, dtype) -> str:
  """The implementation of attention that all blocks take on a platform ('cpu', 'tpu', 'gpu') on arrays of a type.

  Raises:
    UserError: `name`, the value of config.attention, is one that cannot.
  """
  encoder = model.image_encoder
  sides = {encoder.window(block) or model.grid for block in range(encoder.depth)}
  shapes = [(dtype, encoder.width // encoder.heads, side**2 + model.max_text_tokens, 2 * side) for side in sides]
  if name == 'auto':
    return fastest(platform, *shapes)
  for problem in filter(None, (why_not(name, platform, *shape) for shape in shapes)):
    raise UserError(f"config.attention is {name!r}: {problem}; 'auto' takes the best there is")
  return name


def check(config: ConfigDict) -> None:
  """Raises UserError on the first value that cannot be, naming the field."""

  def expect(holds: bool, field: str, value: Any, expected: str):
    if not holds:
      raise UserError(f'config.{field} is {value!r}; expected {expected}')

  expect(config.task in ('text', 'prompts'), 'task', config.task, "'text' or 'prompts'")
  expect(
    config.task == 'prompts' or config.model.text_encoder,
    'model.text_encoder',
    config.model.text_encoder,
    "a text encoder for task 'text'",
  )
  for field in (
    'total_steps',
    'log_every',
    'checkpoint_every',
    'keep_checkpoints',
    'eval_batch_size',
    'eval_samples',
    'accumulate',
    'max_skipped',
  ):
    expect(config[field] >= 1, field, config[field], 'a whole number from 1')
  expect(config.eval_every >= 0, 'eval_every', config.eval_every, 'a whole number from 0')
  expect(config.dtype in ('float32', 'bfloat16'), 'dtype', config.dtype, "'float32' or 'bfloat16'")
  expect(config.attention in IMPLEMENTATIONS, 'attention', config.attention, f'one of {", ".join(IMPLEMENTATIONS)}')
  expect(config.remat in REMAT, 'remat', config.remat, f'one of {", ".join(REMAT)}')
  expect(
    config.on_save_failure in ('continue', 'stop'), 'on_save_failure', config.on_save_failure, "'continue' or 'stop'"
  )
  expect(0 <= config.ema < 1, 'ema', config.ema, 'a number from 0 to below 1')
  for field in ('batch_size', 'objects_per_image', 'threads'):
    expect(config.data[field] >= 1, f'data.{field}', config.data[field], 'a whole number from 1')
  optimizer = config.optimizer
  expect(optimizer.name in ('adam', 'muon'), 'optimizer.name', optimizer.name, "'adam' or 'muon'")
  expect(optimizer.learning_rate > 0, 'optimizer.learning_rate', optimizer.learning_rate, 'a number above 0')
  expect(
    0 <= optimizer.warmup_steps < config.total_steps,
    'optimizer.warmup_steps',
    optimizer.warmup_steps,
    f'0 to below total_steps ({config.total_steps})',
  )
  expect(
    config.final_split in ('train', 'val', 'test', 'testA', 'testB'),
    'final_split',
    config.final_split,
    'a split: val or test for shapes',
  )


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
  """A command line's changes to the config, 'any.field=value' as `load` takes them, and the rest of it."""
  changes = [argument.removeprefix('--config.') for argument in arguments if argument.startswith('--config.')]
  return changes, [argument for argument in arguments if not argument.startswith('--config.')]


def load(argument: str, overrides: list[str]) -> ConfigDict:
  """Reads a config file and applies changes.

  Args:
    argument: 'configs/ldit.py' or 'configs/ldit.py:shapes' (what follows the colon is passed to get_config).
    overrides: 'any.field=value', values as Python literals or bare strings.

  Raises:
    UserError: no such file, unknown field (its neighbours are named), a value of another type.
  """
  file, _, choice = argument.partition(':')
  path = Path(file)
  if not path.is_file():
    folder = path.parent if path.parent.is_dir() else Path('configs')
    found = ', '.join(sorted(str(p) for p in folder.glob('*.py'))) or 'none here; run from the repository'
    raise UserError(f'config file {file!r} does not exist; there are: {found}')
  spec = importlib.util.spec_from_file_location('ditsam_jax_config', path)  # a config is the user's own Python file
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config(choice) if choice else module.get_config()
  for override in overrides:
    _apply(config, override)
  check(config)
  return config


def _apply(config: ConfigDict, override: str) -> None:
  field, equals, text = override.partition('=')
  if not equals:
    raise UserError(f'--config.{field} needs a value: --config.{field}=VALUE')
  *parents, name = field.split('.')
  node, trail = config, 'config'
  for parent in parents:
    node, trail = _child(node, parent, trail), f'{trail}.{parent}'
  old = _child(node, name, trail)
  if isinstance(old, ConfigDict) and text != 'None':
    raise UserError(f'{trail}.{name} is a group of fields ({", ".join(sorted(old))}); set one of them')
  value = _literal(text, old)
  try:
    node[name] = value
  except (TypeError, ValueError) as error:
    raise UserError(f'{trail}.{name} is {old!r} ({type(old).__name__}); {text!r} is of another type') from error


def _child(node: Any, name: str, trail: str) -> Any:
  if isinstance(node, ConfigDict) and name in node:
    return node[name]
  names = sorted(node) if isinstance(node, ConfigDict) else []
  near = difflib.get_close_matches(name, names, n=1)
  hint = f'did you mean {near[0]!r}? ' if near else ''
  raise UserError(f'{trail} has no field {name!r}; {hint}it has: {", ".join(names) or "no fields, it is a value"}')


def _literal(text: str, old: Any) -> Any:
  if isinstance(old, str):
    return text
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def _tuples_to_lists(value: Any) -> Any:
  """ConfigDict keeps the type of a field; lists read alike from Python, JSON and the command line."""
  if isinstance(value, dict):
    return {name: _tuples_to_lists(item) for name, item in value.items()}
  return list(value) if isinstance(value, tuple) else value
