"""Estimates the benefit of storing blocks stacked: python benchmarks/stacked_blocks.py --width=384 --batch-size=2

A train state stores each block's weights separately, so a step with `scan` stacks them first. This compiles, but does
not run, the same step for a state that stores them stacked, which the library does not offer. Prints one JSON line per
variant: sizes of the train state and of the step's temporaries according to XLA.
"""

import argparse
import dataclasses
import functools
import json
import re
import sys
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import jax
import jax.numpy as jnp
from flax import nnx

from ditsam_jax.config import lengths, recipe
from ditsam_jax.models import image_encoder
from ditsam_jax.models.config import DitSamConfig, vit_b
from ditsam_jax.models.ditsam import DitSam, abstract_model
from ditsam_jax.models.execution import REMAT, Execution
from ditsam_jax.models.weights import Structure, dotted, weights_of
from ditsam_jax.training.optimizer import make_optimizer
from ditsam_jax.training.step import fresh_state, make_train_step, text_forward

BLOCKS = 'image_encoder.blocks.'
# Relative positions differ in size between windowed and global blocks; they are always stacked after resizing.
STACKED = re.compile(re.escape(BLOCKS) + r'\d+\.(?!attn\.rel_pos)(.*)')
STORED = BLOCKS + 'all.'
stacked_of = image_encoder.stacked_weights


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--width', type=int, default=768)
  parser.add_argument('--depth', type=int, default=12)
  parser.add_argument('--image-size', type=int, default=512)
  parser.add_argument('--batch-size', type=int, default=2)
  parser.add_argument('--remat', nargs='+', choices=REMAT, default=['none', 'block'])
  options = parser.parse_args()
  for remat in options.remat:
    for variant in ('unrolled', 'scan', 'scan_stored_stacked'):
      row = {'variant': variant} | vars(options) | {'remat': remat} | measure(options, variant, remat)
      print(json.dumps(row), flush=True)


def measure(options: argparse.Namespace, variant: str, remat: str) -> dict[str, float]:
  """Compiles one variant; returns the sizes of its state and temporaries, GB."""
  config = configured(options)
  model = abstract_model(config)
  model.train()
  structure = Structure(model)
  weights = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights_of(model).items()}
  trained = structure.parameters
  stored: dict[str, jax.Array] = {}
  if variant == 'scan_stored_stacked':
    structure = StoredStacked(structure, config, stored)
    trained = {_stored_name(name) for name in trained}
    weights = {_stored_name(name): _stored_shape(name, x, config) for name, x in weights.items()}
  settings = recipe('refcoco')
  settings = lengths.resolve(settings, lambda: lengths.samples_without_data(settings))
  optimizer, rate = make_optimizer(settings.optimizer, settings.total_steps)
  step = make_train_step(
    structure,
    optimizer,
    rate,
    text_forward,
    loss_weights=dataclasses.asdict(settings.loss),
    ema_limit=settings.ema,
    seed=0,
    execution=Execution(remat, scan=variant != 'unrolled', attention='xla'),
  )
  state = jax.eval_shape(functools.partial(fresh_state, trained=trained, optimizer=optimizer), weights)
  with mock.patch.object(image_encoder, 'stacked_weights', functools.partial(take_stored, stored)):
    memory = step.lower(state, batch_of(config, options.batch_size)).compile().memory_analysis()
  return {
    'state_gb': round(memory.argument_size_in_bytes / 1e9, 3),
    'temporaries_gb': round(memory.temp_size_in_bytes / 1e9, 3),
  }


def configured(options: argparse.Namespace) -> DitSamConfig:
  """Returns L-DIT with a ViT of this size and a text encoder of the same width."""
  config, width, depth = vit_b(image_size=options.image_size), options.width, options.depth
  encoder = dataclasses.replace(
    config.image_encoder, width=width, depth=depth, heads=width // 64, global_blocks=tuple(range(2, depth, 3))
  )
  text = dataclasses.replace(config.text_encoder, width=width, heads=width // 64, mlp_width=4 * width)
  return dataclasses.replace(config, image_encoder=encoder, text_encoder=text)


def batch_of(config: DitSamConfig, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the shapes of a training batch."""
  size, tokens = config.image_size, config.max_text_tokens
  shapes = {
    'image': ((size, size, 3), jnp.float32),
    'mask': ((size, size), jnp.uint8),
    'token_ids': ((tokens,), jnp.int32),
    'token_mask': ((tokens,), jnp.int32),
  }
  return {name: jax.ShapeDtypeStruct((rows, *shape), dtype) for name, (shape, dtype) in shapes.items()}


class StoredStacked:
  """A `Structure` for weights with stacked blocks, which it puts into `stored` for `take_stored`."""

  def __init__(self, structure: Structure, config: DitSamConfig, stored: dict[str, jax.Array]):
    self.structure, self.depth, self.stored = structure, config.image_encoder.depth, stored

  def module(self, weights: dict[str, jax.Array]) -> DitSam:
    names = {name: name.removeprefix(STORED) for name in weights if name.startswith(STORED)}
    self.stored.update({names[name]: weights[name] for name in names})
    single = {f'{BLOCKS}{i}.{part}': weights[name][i] for name, part in names.items() for i in range(self.depth)}
    return self.structure.module(single | {name: x for name, x in weights.items() if name not in names})


def take_stored(stored: dict[str, jax.Array], blocks: nnx.List, grid: tuple[int, int]) -> nnx.State:
  """Returns the blocks' weights stacked along a new axis, taken from `stored` if they are there."""
  stacked = nnx.to_flat_state(stacked_of(blocks, grid))
  return nnx.from_flat_state([(path, x.replace(stored.get(dotted(path), x[...]))) for path, x in stacked])


def _stored_name(name: str) -> str:
  return f'{STORED}{found[1]}' if (found := STACKED.fullmatch(name)) else name


def _stored_shape(name: str, x: jax.ShapeDtypeStruct, config: DitSamConfig) -> jax.ShapeDtypeStruct:
  shape = (config.image_encoder.depth, *x.shape) if STACKED.fullmatch(name) else x.shape
  return jax.ShapeDtypeStruct(shape, x.dtype)


if __name__ == '__main__':
  main()
