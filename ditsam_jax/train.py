"""Trains a model: python -m ditsam_jax.train --config=configs/ldit.py:shapes --workdir=runs/ldit

Running the same command again resumes. Ctrl-C saves. At the end the workdir holds the model (`model/`),
`metrics.json` and `predictions.png`; `tensorboard --logdir=WORKDIR` shows the rest.
"""

import argparse
import json
from pathlib import Path
import signal
import sys
import time
from typing import Any

from flax import nnx
import grain
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict
import numpy as np

from ditsam_jax import command_line, saved_model
from ditsam_jax.command_line import UserError, say
from ditsam_jax.data import datasets
from ditsam_jax.data.augmentation import AugmentationConfig
from ditsam_jax.data.pipeline import prompt_batches, train_batches
from ditsam_jax.data.referring import ReferringSource
from ditsam_jax.data.tokenization import Tokenizer
from ditsam_jax.evaluation.evaluator import evaluate_split
from ditsam_jax.evaluation.forward import forward_of
from ditsam_jax.evaluation.pictures import Gallery
from ditsam_jax.evaluation.results import Results
from ditsam_jax.image_files import write_png
from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.models.ditsam import DitSam
from ditsam_jax.training import config as training_config
from ditsam_jax.training.checkpoint import Checkpoints
from ditsam_jax.training.logging import RunLog, write_json
from ditsam_jax.training.optimizer import freeze_pattern, make_optimizer
from ditsam_jax.training.step import (Structure, TrainState, averaged_model, make_state, make_train_step,
                                      prompt_forward, text_forward)


def main(arguments: list[str] | None = None) -> int:
  """The command."""
  arguments = sys.argv[1:] if arguments is None else arguments
  parser = argparse.ArgumentParser(prog='python -m ditsam_jax.train', description=__doc__.split('\n')[0],
                                   epilog='--config.any.field=value changes a field of the config', allow_abbrev=False)
  parser.add_argument('--config', required=True, metavar='FILE[:DATA]', help='configs/ldit.py:shapes, for example')
  parser.add_argument('--workdir', default='', help='where everything is written (default: runs/<config>-<data>)')
  overrides = [a.removeprefix('--config.') for a in arguments if a.startswith('--config.')]
  options = parser.parse_args([a for a in arguments if not a.startswith('--config.')])
  config = training_config.load(options.config, overrides)
  name = Path(options.config.partition(':')[0]).stem
  train(config, Path(options.workdir or f'runs/{name}-{config.data.dataset}'))
  return 0


def train(config: ConfigDict, workdir: Path) -> dict[str, Any]:
  """Trains, evaluates and writes `workdir`; returns what metrics.json holds.

  Raises:
    UserError: impossible config, missing data, a workdir of another run.
    KeyboardInterrupt: after Ctrl-C, with everything saved.
  """
  started = time.time()
  # --------------------------------------------------------------------------------------------------------- mesh
  mesh = Mesh(np.asarray(jax.devices()), ('data',))
  replicated, by_batch = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec('data'))
  if config.data.batch_size % mesh.size:
    raise UserError(f'config.data.batch_size is {config.data.batch_size}; expected a multiple of the {mesh.size} '
                    f'devices')

  # --------------------------------------------------------------------------------------------------------- data
  model_config = training_config.model_config(config)
  training_config.check_attention(model_config, jax.default_backend(), np.float32)
  freeze = freeze_pattern(config.freeze)
  source = _open(config, 'train')
  vocabulary = datasets.vocabulary(config.data.dataset, config.init_from)
  _claim_workdir(workdir, config)
  tokenizer = Tokenizer(vocabulary, model_config.max_text_tokens)
  iterator = iter(_training_batches(config, model_config, source, tokenizer))

  # --------------------------------------------------------------------------------------------- model, state, step
  model = DitSam(model_config, rngs=nnx.Rngs(config.seed))
  fresh = saved_model.initialise_from(model, config.init_from) if config.init_from else []
  model.train()
  optimizer, rate = make_optimizer(config.optimizer, config.total_steps)
  structure, state = make_state(model, optimizer, freeze)
  state = jax.device_put(state, replicated)
  train_step = make_train_step(structure, optimizer, rate, text_forward if config.task == 'text' else prompt_forward,
                               loss_weights=config.loss.to_dict(), ema_limit=config.ema, seed=config.seed)
  say(f'{_count(state.params)} parameters trained, {_count(state.frozen)} frozen; {len(source)} objects in '
       f'{source.num_images} images; {mesh.size} {jax.devices()[0].platform} device(s)')
  if config.init_from:
    say(f'weights from {config.init_from!r}; fresh: {_parts(fresh) or "none"}')

  # --------------------------------------------------------------------------------------------------------- loop
  evaluation = _Evaluation(config, model_config, structure, tokenizer) if config.task == 'text' else None
  with Checkpoints(workdir, config.keep_checkpoints) as checkpoints, StopSignal() as stop:
    if checkpoints.latest_step is not None:
      state = checkpoints.restore(state, iterator)
      say(f'resumed at step {int(state.step)} of {config.total_steps}')
    with RunLog(workdir, first_step=int(state.step), total_steps=config.total_steps) as log:
      for step in range(int(state.step) + 1, config.total_steps + 1):
        batch = {name: jax.make_array_from_process_local_data(by_batch, array)
                 for name, array in next(iterator).items()}
        state, metrics = train_step(state, batch)
        log.advance()
        if step % config.log_every == 0:
          log.scalars(step, {name: float(value) for name, value in metrics.items()})
        if evaluation and config.eval_every and step % config.eval_every == 0 and step < config.total_steps:
          results, gallery = evaluation(state, 'val', config.eval_samples)
          log.scalars(step, _curves(results), 'val')
          log.panel(step, np.asarray(gallery.panel()))
        if step % config.checkpoint_every == 0 or step == config.total_steps or stop.asked:
          checkpoints.save(state, iterator)
        if stop.asked:
          break
  trained = time.time()
  model_dir = saved_model.save(workdir / 'model', averaged_model(structure, state),
                               vocabulary=vocabulary if config.task == 'text' else None,
                               data=_about_data(config), notes={'steps': int(state.step)})
  if int(state.step) < config.total_steps:
    say(f'stopped at step {int(state.step)} of {config.total_steps}, all saved; the same command goes on from there')
    raise KeyboardInterrupt

  # --------------------------------------------------------------------------------------------------------- results
  summary: dict[str, Any] = {'steps': config.total_steps, 'parameters_trained': _count(state.params)}
  if evaluation:
    results, gallery = evaluation(state, config.final_split, None)
    write_png(workdir / 'predictions.png', gallery.panel(_headline(config, results)))
    summary |= {'split': config.final_split, **results.to_json()}
    print(results.table())
  summary['seconds'] = {'training': round(trained - started, 1), 'evaluation': round(time.time() - trained, 1)}
  write_json(workdir / 'metrics.json', summary)
  written = [workdir / 'metrics.json', model_dir] + ([workdir / 'predictions.png'] if evaluation else [])
  print('written:', ', '.join(map(str, written)))
  return summary


class StopSignal:
  """Turns the first Ctrl-C (or SIGTERM) into a request to stop after the step; the second one ends at once."""

  def __init__(self):
    self.asked = False
    self._before: dict[int, Any] = {}

  def __enter__(self) -> 'StopSignal':
    for number in (signal.SIGINT, signal.SIGTERM):
      self._before[number] = signal.signal(number, self._ask)
    return self

  def __exit__(self, *exception):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _ask(self, number, frame):
    if self.asked:
      raise KeyboardInterrupt
    self.asked = True
    say('stopping after this step; press Ctrl-C again to stop at once and lose what is not saved')


class _Evaluation:
  """Scores a train state's averaged weights; compiled once."""

  def __init__(self, config: ConfigDict, model_config: DitSamConfig, structure: Structure, tokenizer: Tokenizer):
    self._config, self._model_config, self._structure, self._tokenizer = config, model_config, structure, tokenizer
    self._sources: dict[str, ReferringSource] = {}

  def __call__(self, state: TrainState, split: str, limit: int | None) -> tuple[Results, Gallery]:
    config = self._config
    if split not in self._sources:
      self._sources[split] = _open(config, split)
    gallery = Gallery(self._model_config.pixel_mean, self._model_config.pixel_std)
    results = evaluate_split(
        forward_of(averaged_model(self._structure, state)), self._sources[split], self._tokenizer, self._model_config,
        batch_size=config.eval_batch_size, limit=limit,
        generalised=config.data.dataset == 'grefcoco', gallery=gallery, progress=limit is None)
    return results, gallery


def _open(config: ConfigDict, split: str) -> ReferringSource:
  data = config.data
  return datasets.open_split(data.dataset, data.data_dir, split, scenes=data.get('scenes'),
                             in_memory=data.in_memory and split == 'train')


def _training_batches(config: ConfigDict, model: DitSamConfig, source: ReferringSource,
                      tokenizer: Tokenizer) -> grain.IterDataset:
  data = config.data
  settings = dict(
      image_size=model.image_size, pixel_mean=model.pixel_mean, pixel_std=model.pixel_std,
      augmentation=AugmentationConfig(**data.augmentation), batch_size=data.batch_size // jax.process_count(),
      seed=config.seed, threads=data.threads, processes=data.processes,
      shard=(jax.process_index(), jax.process_count()))
  if config.task == 'text':
    return train_batches(source, tokenizer, **settings)
  return prompt_batches(source, objects_per_image=data.objects_per_image, **settings)


def _claim_workdir(workdir: Path, config: ConfigDict) -> None:
  """Makes the folder and notes the config in it, or checks that it is this run's. Raises UserError if not."""
  file, text = workdir / 'config.json', json.loads(config.to_json())
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    if file.exists():
      changed = _differences(json.loads(file.read_text()), text)
      if changed:
        raise UserError(f'workdir {str(workdir)!r} holds a run of another config ({"; ".join(changed[:4])}); '
                        f'choose another --workdir or delete this one')
    write_json(file, text)
  except (OSError, ValueError) as error:
    raise UserError(f'workdir {str(workdir)!r} cannot be used: {error}') from error


def _differences(old: Any, new: Any, trail: str = 'config') -> list[str]:
  """Fields that differ between two configs as plain containers."""
  if isinstance(old, dict) and isinstance(new, dict):
    return [line for name in sorted(set(old) | set(new))
            for line in _differences(old.get(name), new.get(name), f'{trail}.{name}')]
  return [] if old == new else [f'{trail} was {old!r}, is {new!r}']


def _about_data(config: ConfigDict) -> dict[str, Any]:
  """What a saved model tells of its data: enough to make the same samples again, no paths."""
  data = json.loads(config.data.to_json())
  return {name: data[name] for name in ('dataset', 'scenes') if name in data}


def _headline(config: ConfigDict, results: Results) -> str:
  return f'{config.data.dataset} {config.final_split}, {config.model.fusion}: mIoU {results.miou:.1f}'


def _curves(results: Results) -> dict[str, float]:
  """What TensorBoard plots of an evaluation: mIoU, over all and by kind of expression."""
  return {'mIoU': results.miou, **{f'mIoU_{kind}': results.metrics(kind=kind)['mIoU'] for kind in results.kinds}}


def _count(weights: dict[str, jax.Array]) -> int:
  return sum(array.size for array in weights.values())


def _parts(names: list[str]) -> str:
  """Which parts of the model some parameters belong to."""
  return ', '.join(sorted({'.'.join(name.split('.')[:2 if name.startswith('image_encoder') else 1])
                           for name in names}))


if __name__ == '__main__':
  command_line.run(main)
