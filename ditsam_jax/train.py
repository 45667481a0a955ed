"""Trains a model: python -m ditsam_jax.train --config=configs/ldit.py:shapes --workdir=runs/ldit

Running the same command again resumes. Ctrl-C saves. At the end the workdir holds the model (`model/`),
`metrics.json` and `predictions.png`; `tensorboard --logdir=WORKDIR` shows the rest.
"""

import argparse
import itertools
import json
from pathlib import Path
import signal
import sys
import time
from typing import Any

from flax import nnx
import grain
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict
import numpy as np

from ditsam_jax import command_line, saved_model
from ditsam_jax.command_line import UserError
from ditsam_jax.data.open import SHAPES_VOCABULARY, open_split
from ditsam_jax.data.augmentation import AugmentationConfig
from ditsam_jax.data.pipeline import prompt_batches, train_batches
from ditsam_jax.data.tokenization import Tokenizer
from ditsam_jax.evaluation.evaluator import evaluate_split
from ditsam_jax.models.ditsam import DitSam
from ditsam_jax.training import config as training_config
from ditsam_jax.training.checkpoint import Checkpoints
from ditsam_jax.training.logging import RunLog, write_json
from ditsam_jax.training.optimizer import freeze_pattern, make_optimizer
from ditsam_jax.training.step import averaged_model, make_state, make_train_step, prompt_forward, text_forward


def main(arguments: list[str] | None = None) -> int:
  """The command."""
  arguments = sys.argv[1:] if arguments is None else arguments
  overrides = [a.removeprefix('--config.') for a in arguments if a.startswith('--config.')]
  parser = argparse.ArgumentParser(prog='python -m ditsam_jax.train', description=__doc__.split('\n')[0],
                                   epilog='--config.any.field=value changes a field of the config', allow_abbrev=False)
  parser.add_argument('--config', required=True, metavar='FILE[:DATA]', help='configs/ldit.py:shapes, for example')
  parser.add_argument('--workdir', default='', help='where everything is written (default: runs/<config>-<data>)')
  options = parser.parse_args([a for a in arguments if not a.startswith('--config.')])
  config = training_config.load(options.config, overrides)
  workdir = Path(options.workdir or f'runs/{Path(options.config.partition(":")[0]).stem}-{config.data.dataset}')
  train(config, workdir)
  return 0


def train(config: ConfigDict, workdir: Path) -> dict[str, Any]:
  """Trains, evaluates and writes `workdir`; returns what metrics.json holds.

  Raises:
    UserError: impossible config, missing data, a workdir of another run.
    KeyboardInterrupt: after Ctrl-C, with everything saved.
  """
  started = time.time()
  # ------------------------------------------------------------------------------------------------- mesh
  mesh = Mesh(np.asarray(jax.devices()), ('data',))
  replicated, by_batch = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec('data'))
  if config.data.batch_size % mesh.size:
    raise UserError(f'config.data.batch_size is {config.data.batch_size}; expected a multiple of the {mesh.size} devices')

  # ------------------------------------------------------------------------------------------------- model
  model_config = training_config.model_config(config)
  model = DitSam(model_config, rngs=nnx.Rngs(config.seed))
  fresh = saved_model.initialise_from(model, config.init_from) if config.init_from else []
  model.train()

  # ------------------------------------------------------------------------------------------------- data
  _claim_workdir(workdir, config)
  source = open_split(config.data, 'train')
  tokenizer = Tokenizer(SHAPES_VOCABULARY, model_config.max_text_tokens) if config.task == 'text' else None
  iterator = iter(_training_data(config, model_config, source, tokenizer))

  # ------------------------------------------------------------------------------------------------- state and step
  optimizer, rate = make_optimizer(config.optimizer, config.total_steps)
  structure, state = make_state(model, optimizer, freeze_pattern(config.freeze))
  state = jax.device_put(state, replicated)
  train_step = make_train_step(structure, optimizer, rate, text_forward if config.task == 'text' else prompt_forward,
                               loss_weights=config.loss.to_dict(), ema_limit=config.ema, seed=config.seed)
  _say(f'{_count(state.params):,} trained and {_count(state.frozen):,} frozen parameters, '
       f'{len(source):,} objects to train on, {mesh.size} {jax.devices()[0].platform} device(s)')
  if fresh:
    _say(f'{len(fresh)} parameters start fresh, the rest from {config.init_from}: {_parts(fresh)}')

  # ------------------------------------------------------------------------------------------------- loop
  with Checkpoints(workdir, config.keep_checkpoints) as checkpoints, _StopSignal() as stop:
    if checkpoints.latest_step is not None:
      state = checkpoints.restore(state, iterator)
      _say(f'resumed at step {int(state.step)} of {config.total_steps}')
    first = int(state.step)
    with RunLog(workdir, total_steps=config.total_steps, first_step=first) as log:
      for step in range(first + 1, config.total_steps + 1):
        batch = {name: jax.make_array_from_process_local_data(by_batch, array)
                 for name, array in next(iterator).items()}
        state, metrics = train_step(state, batch)
        log.progress(step, metrics if step % 10 == 0 else None)
        if step % config.log_every == 0:
          log.scalars(step, {name: float(value) for name, value in metrics.items()})
        if config.eval_every and step % config.eval_every == 0 and step < config.total_steps:
          results = _evaluate(config, structure, state, tokenizer, 'val', config.eval_samples)
          log.evaluation(step, results)
        if step % config.checkpoint_every == 0 or step == config.total_steps or stop.asked:
          checkpoints.save(state, iterator)
        if stop.asked:
          break
    model = averaged_model(structure, state)
    saved_model.save(workdir / 'model', model, vocabulary=SHAPES_VOCABULARY if tokenizer else None,
                     data=json.loads(config.data.to_json_best_effort()), notes={'step': int(state.step)})
  if stop.asked:
    _say(f'stopped at step {int(state.step)}; run the same command again to go on')
    raise KeyboardInterrupt

  # ------------------------------------------------------------------------------------------------- results
  seconds = {'this_run': round(time.time() - started, 1)}
  return _finish(config, workdir, structure, state, tokenizer, seconds)
