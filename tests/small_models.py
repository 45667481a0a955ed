"""Small models for tests, with random weights or with the release's weights from tests/golden."""

import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from ditsam_jax.convert import names
from ditsam_jax.models import config as models
from ditsam_jax.models.ditsam import DitSam, abstract_model
from ditsam_jax.models.weights import Structure, weights_of
from ditsam_jax.storage import saved_model
from ditsam_jax.training.step import TrainState, fresh_state, trained_of

GOLDEN = Path(__file__).parent / 'golden'

# A plain SAM with the sizes of golden/sam.npz; windows of 3 in a grid of 5 need padding.
SAM = models.DitSamConfig(
  models.ImageEncoderConfig(
    width=24, depth=3, heads=2, global_blocks=(1,), pretrain_grid=5, pretrain_window=3, attention_scope='windowed'
  ),
  models.MaskDecoderConfig(width=32, heads=4, mlp_width=48, iou_hidden=40),
  None,
  fusion='none',
  image_size=80,
  mask_threshold=0.5,
  align_corners=False,
)


def random_batch(size: int, seed: int = 0) -> dict[str, np.ndarray]:
  """A training batch for `small_config`."""
  rng = np.random.default_rng(seed)
  return dict(
    image=rng.normal(size=(size, 64, 64, 3)).astype(np.float32),
    token_ids=rng.integers(1, 20, (size, 6)),
    token_mask=np.ones((size, 6), np.int32),
    mask=rng.integers(0, 2, (size, 64, 64)).astype(np.uint8),
  )


def golden_arrays(name: str) -> dict[str, np.ndarray]:
  """Loads the arrays of tests/golden/NAME.npz."""
  with np.load(GOLDEN / f'{name}.npz') as file:
    return dict(file)


def golden_config(name: str, image_size: int, **changes) -> models.DitSamConfig:
  """Returns the config of a golden model (NAME.json) for images of side `image_size`, without dropout."""
  a = json.loads((GOLDEN / f'{name}.json').read_text())
  encoder = models.ImageEncoderConfig(
    width=a['dim'],
    depth=a['depth'],
    heads=a['heads'],
    global_blocks=tuple(a['glob']),
    pretrain_grid=a['img'] // 16,
    pretrain_window=a['window'],
  )
  decoder = models.MaskDecoderConfig(width=a['out'], depth=a['dec_depth'], heads=a['dec_heads'], mlp_width=a['mlp_dim'])
  text = models.TextEncoderConfig(
    vocab_size=a['vocab'],
    width=a['tdim'],
    depth=a['tlayers'],
    heads=a['theads'],
    mlp_width=a['tinter'],
    max_positions=32,
    dropout=0.0,
  )
  fusion = 'none' if a['variant'] == 'default_sam' else a['variant']
  return models.DitSamConfig(
    encoder, decoder, text, fusion=fusion, fusion_dropout=0.0, image_size=image_size, **changes
  )


def small_config(**changes) -> models.DitSamConfig:
  """Returns the config of an L-DIT for 64 x 64 images and 6 to 8 tokens, which compiles in seconds."""
  config = models.DitSamConfig(
    models.ImageEncoderConfig(width=24, depth=2, heads=2, global_blocks=(0, 1), pretrain_grid=4),
    models.MaskDecoderConfig(width=16, heads=2, mlp_width=16, iou_hidden=16),
    models.TextEncoderConfig(vocab_size=20, width=24, depth=1, heads=2, mlp_width=16, max_positions=8),
    image_size=64,
    max_text_tokens=6,
  )
  return dataclasses.replace(config, **changes)


def random_model(config: models.DitSamConfig, seed: int = 0) -> DitSam:
  """Creates a model with random weights only (zeros or ones could hide mistakes), without compiling initialisers."""
  rng = np.random.default_rng(seed)
  model = abstract_model(config)
  for path, variable in weights_of(model).items():
    shape = variable.shape
    scale = 0.3 if len(shape) == 1 else 1.0 if path.endswith(('_token', '_tokens')) else np.prod(shape[:-1]) ** -0.5
    centre = 1.0 if path.endswith('scale') else 0.0
    variable.set_value(jnp.asarray(rng.normal(centre, scale, shape), jnp.float32))
  for variable in jax.tree.leaves(nnx.state(model, nnx.RngState), is_leaf=lambda x: isinstance(x, nnx.Variable)):
    is_key = jnp.issubdtype(variable.dtype, jax.dtypes.prng_key)
    variable.set_value(jax.random.key(seed) if is_key else jnp.zeros(variable.shape, variable.dtype))
  return model


def write_unusable(folder: Path, value: float) -> models.DitSamConfig:
  """Writes a plain SAM with `value` in the bias of its patch embedding, and returns its config."""
  model = random_model(small_config(fusion='none', text_encoder=None))
  weights = {name: np.asarray(variable[...]) for name, variable in weights_of(model).items()}
  weights['image_encoder.patch_embed.bias'] = weights['image_encoder.patch_embed.bias'].copy()
  weights['image_encoder.patch_embed.bias'][2] = value
  saved_model.write(folder, model.config, weights)
  return model.config


@functools.partial(nnx.jit, static_argnames=('grid', 'execution', 'multimask'))
def call(module: nnx.Module, *inputs, **options):
  """Calls a module in one program: compiling operation by operation takes seconds."""
  return module(*inputs, **options)


def make_state(
  model: DitSam, optimizer: optax.GradientTransformation, frozen: Mapping[str, re.Pattern] = MappingProxyType({})
) -> tuple[Structure, TrainState]:
  """Returns the structure and initial train state of a model; for `frozen` see `trained_of`."""
  structure = Structure(model)
  weights = {name: variable[...] for name, variable in weights_of(model).items()}
  return structure, fresh_state(weights, trained_of(structure.parameters, frozen), optimizer)


def golden_model(name: str, image_size: int, **changes) -> DitSam:
  """Loads a golden model with the release's weights, in eval mode; `changes` override its config."""
  import torch

  checkpoint = torch.load(GOLDEN / f'{name}.pth', weights_only=True)
  model = random_model(golden_config(name, image_size, **changes))
  load_release(model, {key.removeprefix('module.'): tensor.numpy() for key, tensor in checkpoint['state_dict'].items()})
  model.eval()
  return model


def load_release(model: nnx.Module, tensors: dict[str, np.ndarray], prefix: str = '') -> set[str]:
  """Loads the release's tensors into all weights of `model`; returns the names of unused tensors.

  `prefix` is the path of `model` inside a DitSam ('' for a DitSam itself).
  """
  unused = set(tensors)
  for path, variable in weights_of(model).items():
    entry = names.entry(prefix + path)
    array = entry.load([tensors[name] for name in entry.names])
    assert array.shape == variable.shape, f'{path}: {array.shape} for {variable.shape}'
    variable.set_value(jnp.asarray(array))
    unused -= set(entry.names)
  return unused
