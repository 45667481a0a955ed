"""Trains a model: python -m ditsam_jax.train --config=configs/ldit.py:shapes --workdir=runs/ldit

Rerun the command to resume, bit-exactly. Ctrl-C and SIGTERM save a checkpoint first. At the end, the workdir contains
the model (`model/`), the best one on the validation split (`best/`), `metrics.json` and `predictions.png`. `tensorboard
--logdir=WORKDIR` shows the curves.
"""

import dataclasses
import functools
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ditsam_jax import command_line
from ditsam_jax.config import changes, checks, files, lengths
from ditsam_jax.config.run import ResolvedRunConfig, RunConfig, reads_text
from ditsam_jax.config.start import check_changes
from ditsam_jax.data import datasets
from ditsam_jax.data.pipeline import BatchStream, prompt_batches, train_batches
from ditsam_jax.data.referring import ReferringSource
from ditsam_jax.errors import UserError
from ditsam_jax.evaluation.evaluator import evaluate_split
from ditsam_jax.evaluation.forward import forward_of
from ditsam_jax.evaluation.pictures import Gallery
from ditsam_jax.evaluation.results import Results
from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.models.ditsam import DitSam
from ditsam_jax.models.weights import is_position
from ditsam_jax.options import Parser
from ditsam_jax.parallel import distributed, sharding
from ditsam_jax.parallel.watch import Watch
from ditsam_jax.storage import saved_model
from ditsam_jax.storage.bucket import AnyPath
from ditsam_jax.storage.description import check_words, fresh_parts, parts_of
from ditsam_jax.storage.paths import any_path, anywhere
from ditsam_jax.tokenization import Tokenizer
from ditsam_jax.training import memory, outputs, words
from ditsam_jax.training.checkpoint import Checkpoints, Progress
from ditsam_jax.training.fingerprint import weights_sha256
from ditsam_jax.training.logging import RunLog, SilentLog
from ditsam_jax.training.program import Program, build
from ditsam_jax.training.skipped import SkippedUpdates
from ditsam_jax.training.start import check_start
from ditsam_jax.training.step import TrainState
from ditsam_jax.training.stop import Stopped, StopSignal
from ditsam_jax.training.workdir import Workdir


def main(arguments: list[str] | None = None) -> int:
  """Runs the command."""
  arguments = sys.argv[1:] if arguments is None else arguments
  parser = Parser(
    prog='python -m ditsam_jax.train',
    description=(__doc__ or '').split('\n')[0],
    epilog='--config.any.field=value changes a field of the config',
  )
  parser.add_argument('--config', required=True, metavar='NAME[:DATA]', help=files.HELP)
  parser.add_argument('--workdir', type=anywhere, help='output folder, may be gs://... (default: runs/<config>-<data>)')
  distributed.add_flags(parser)
  overrides, rest = changes.split_arguments(arguments)
  options = parser.parse_args(rest)
  config = files.load(options.config, overrides)
  distributed.initialise(options, preemptible=True)
  default = f'runs/{files.short_name(options.config)}-{checks.check(config).data.dataset.replace("/", "-")}'
  train(config, any_path(options.workdir or default))
  return 0


def train(config: ConfigDict, workdir: AnyPath) -> dict[str, Any] | None:
  """Trains, evaluates and writes `workdir`. Returns the content of metrics.json, or None after SIGTERM.

  Raises:
    UserError: the config is invalid, data is missing, the workdir is in use or contains another run, no checkpoint is
      intact, too many updates in a row had a non-finite loss or gradient, or a save failed and the config says to stop.
    KeyboardInterrupt: after Ctrl-C, with everything saved.
  """
  with StopSignal() as stop, Workdir(workdir) as claimed, Watch():
    summary = _train(config, workdir, claimed, stop)
  if summary is None and stop.number == signal.SIGINT:
    raise KeyboardInterrupt
  return summary


def _train(given: ConfigDict, workdir: AnyPath, claimed: Workdir, stop: StopSignal) -> dict[str, Any] | None:
  started = time.time()
  # -------------------------------------------------------------------------------- checks before any long work
  checked = checks.check(given)
  mesh = sharding.make_mesh(checked.mesh)
  claimed.check_place()
  datasets.check_data(checked.data.dataset, checked.data.data_dir, _splits(checked))
  starts = bool(checked.init_from) and not claimed.begun
  if starts:
    check_changes(dataclasses.asdict(checked.model), checked.init_from, whole=False)
  vocabulary = datasets.vocabulary(checked.data.dataset, checked.init_from) if reads_text(checked.task) else None

  # ------------------------------------------------------------------------------------ data, lengths, train step
  data = functools.cache(lambda: distributed.first_alone_first(lambda: _open(checked, 'train'), 'data'))
  config = lengths.resolve(given, lambda: _samples(data(), checked.task))
  program = build(config, config.model, mesh)
  if starts:
    check_start(config.init_from, program.state.params | program.state.frozen)
  source, added, grown = data(), None, {}
  if config.data.add_words and vocabulary:
    added = words.added(config, vocabulary, source, workdir / 'vocab.txt' if claimed.begun else None)
    config = dataclasses.replace(config, model=added.model)
    program = build(config, config.model, mesh)
    grown = added.grown(program.state, config)
  model_config = config.model
  plain = config.to_json()
  claimed.claim(plain)
  if added:
    vocabulary = added.write(workdir / 'vocab.txt')
  tokenizer = None
  if vocabulary:
    tokenizer = Tokenizer(vocabulary, model_config.max_text_tokens)
    check_words(len(tokenizer.vocabulary), model_config, vocabulary)
  iterator = _training_batches(
    config, model_config, source, tokenizer, sharding.rows_of_this_host(mesh, config.data.batch_size)
  )

  # --------------------------------------------------------------------------------------------------------- loop
  evaluation = _Evaluation(config, tokenizer, stop) if tokenizer else None
  skipped = SkippedUpdates(workdir, config.max_skipped)
  describe: dict[str, Any] = dict(vocabulary=vocabulary, data=_about_data(config))
  with (
    Checkpoints(workdir, config.keep_checkpoints, plain, config.on_save_failure, claimed.still_ours) as checkpoints,
    memory.explained(program, config),
  ):
    if checkpoints.latest_step != config.total_steps:
      program = memory.compiled(program, config)
    if checkpoints.latest_step is None:
      state, progress = _first_state(program, config.init_from, grown)
    else:
      state, progress = checkpoints.restore(program.state, iterator)
      distributed.tell(f'resumed at step {int(state.step)} of {config.total_steps}')
    distributed.tell(
      f'{_count(state.params)} parameters trained, {_count(state.frozen)} frozen; {len(source)} objects '
      f'in {source.num_images} images; {_devices(mesh)}'
    )
    step = int(state.step)
    memory.return_freed()
    stop.steps_begin()
    with _log(workdir, step, progress, config) as log:
      while True:
        worth_saving = step > 0 and step % config.checkpoint_every == 0
        # A run that was stopped during an evaluation starts with it.
        if evaluation and config.eval_every and step % config.eval_every == 0 and step > progress.evaluated:
          model = program.averaged_model(state)
          results, gallery = evaluation(model, 'val', config.eval_samples)
          if results:
            log.scalars(step, outputs.curves(results), 'val')
            log.panel(step, np.asarray(outputs.save_samples(workdir, step, results, gallery, config)))
            progress.evaluated = step
            if progress.improved(step, results.miou):
              outputs.save_best(
                workdir, config, model, progress, describe | {'fresh': _untrained(progress, state, step)}
              )
              worth_saving = True
          del model  # frees memory for the next steps
        ends = stop.agreed() or step == config.total_steps
        if worth_saving or ends:
          skipped.look()
          log.store()
          checkpoints.save(state, iterator, progress)
        if ends:
          break
        try:
          arrays = next(iterator)
        except Exception:  # a worker process that was ended by the same signal
          if not stop.asked:
            raise
          continue
        state, metrics = program.step(state, program.assemble(arrays))
        step += 1
        skipped.watch(step, arrays, metrics)
        checkpoints.check()
        log.advance()
        if step % config.log_every == 0:
          log.scalars(step, {name: float(value) for name, value in metrics.items()})
  trained = time.time()
  # On preemption there is no time to write the model; and with several hosts, only one knows of a Ctrl-C.
  if stop.number == signal.SIGTERM or stop.asked and not distributed.alone():
    return _stopped(step, config, checkpoints.latest_step)
  model = program.averaged_model(state)
  unsaved = None
  if distributed.is_first():
    try:
      notes = {'steps': step, 'task': config.task}
      saved_model.save(workdir / 'model', model, **describe, fresh=_untrained(progress, state, step), notes=notes)
    except UserError as error:  # raised later: the checkpoint is saved, and the metrics are still to be computed
      unsaved = error
  if stop.asked:
    return _stopped(step, config, checkpoints.latest_step, unsaved)

  # --------------------------------------------------------------------------------------------------------- results
  summary: dict[str, Any] = {
    'steps': config.total_steps,
    'parameters_trained': _count(state.params),
    'updates_skipped': int(state.skipped[0]),
    'weights_sha256': weights_sha256(params=state.params, ema=state.ema, frozen=state.frozen),
  }
  if progress.best_step is not None:
    summary['best'] = {'step': progress.best_step, 'val_mIoU': progress.best_score}
  results = gallery = None
  if evaluation:
    results, gallery = evaluation(model, config.final_split, None)
    if results is None:
      return _stopped(step, config, checkpoints.latest_step, unsaved)
    summary |= {'split': config.final_split, **results.to_json()}
  summary['seconds'] = {'training': round(trained - started, 1), 'evaluation': round(time.time() - trained, 1)}
  if distributed.is_first():
    outputs.write_results(workdir, config, summary, results, gallery, unsaved)
  return summary


def _first_state(
  program: Program, init_from: str, grown: dict[str, Callable[[np.ndarray], np.ndarray]]
) -> tuple[TrainState, Progress]:
  """Creates the state of a new run, see `Program.initial_state`."""
  state, fresh = program.initial_state(init_from, grown)
  progress = Progress(fresh=_fresh_at_start(fresh, init_from))
  if init_from:
    if not progress.fresh:  # the start is fully trained: evaluate it before the first update
      progress.evaluated = -1
    distributed.tell(f'weights from {init_from!r}; fresh: {", ".join(progress.fresh) or "none"}')
  return state, progress


def _stopped(step: int, config: ResolvedRunConfig, saved: int | None, unsaved: UserError | None = None) -> None:
  """Reports a stop. Raises UserError if the last step is not saved, or `unsaved`, why the model was not written."""
  if saved != step:
    raise UserError(
      f'stopped at step {step} of {config.total_steps}, which is not saved (see above); rerun the command to resume '
      f'from step {saved or 0}'
    )
  if unsaved:
    raise unsaved
  distributed.tell(f'stopped at step {step} of {config.total_steps}, all saved; rerun the command to resume')


class _Evaluation:
  """Scores a run's models on its data, compiling once. Results are None if a signal requested a stop."""

  def __init__(self, config: RunConfig, tokenizer: Tokenizer, stop: StopSignal):
    self._config, self._tokenizer, self._stop = config, tokenizer, stop
    self._sources: dict[str, ReferringSource] = {}

  def __call__(self, model: DitSam, split: str, limit: int | None) -> tuple[Results | None, Gallery]:
    config = self._config
    if split not in self._sources:
      self._sources[split] = _open(config, split)
    gallery = Gallery(model.config.pixel_mean, model.config.pixel_std)
    forward = self._stop.interruptible(forward_of(model))
    try:
      results = evaluate_split(
        forward,
        self._sources[split],
        self._tokenizer,
        model.config,
        batch_size=config.eval_batch_size,
        limit=limit,
        generalised=datasets.find(config.data.dataset, config.data.data_dir)[0].generalised,
        gallery=gallery,
        progress=limit is None,
      )
    except Stopped:
      results = None
    return results, gallery


def _log(workdir: AnyPath, step: int, progress: Progress, config: ResolvedRunConfig) -> RunLog | SilentLog:
  if not distributed.is_first():
    return SilentLog()
  return RunLog(workdir, first_step=step, evaluated=progress.evaluated, total_steps=config.total_steps)


def _open(config: RunConfig, split: str) -> ReferringSource:
  data = config.data
  scenes = dataclasses.asdict(data.scenes) if data.scenes else None
  return datasets.open_split(
    data.dataset, data.data_dir, split, scenes=scenes, in_memory=data.in_memory and split == 'train'
  )


def _splits(config: RunConfig) -> set[str]:
  """The splits that a run needs."""
  evaluated = {config.final_split} | ({'val'} if config.eval_every != 0 else set())
  return {'train'} | (evaluated if reads_text(config.task) else set())


def _samples(source: ReferringSource, task: str) -> int:
  """Number of training samples per epoch."""
  return len(source) if reads_text(task) else source.num_images


def _training_batches(
  config: RunConfig, model: DitSamConfig, source: ReferringSource, tokenizer: Tokenizer | None, rows: np.ndarray
) -> BatchStream:
  data = config.data
  settings: dict[str, Any] = dict(
    image_size=model.image_size,
    pixel_mean=model.pixel_mean,
    pixel_std=model.pixel_std,
    augmentation=data.augmentation,
    batch_size=data.batch_size,
    seed=config.seed,
    threads=data.threads,
    processes=data.processes,
    rows=rows,
  )
  if tokenizer:
    return train_batches(source, tokenizer, **settings)
  return prompt_batches(source, objects_per_image=data.objects_per_image, prompt=data.prompts, **settings)


def _about_data(config: ResolvedRunConfig) -> dict[str, Any]:
  """The description of the data in a saved model: enough to recreate the samples, without paths."""
  data = config.to_json()['data']
  return {name: data[name] for name in ('dataset', 'scenes') if data[name] is not None}


def _devices(mesh: Mesh) -> str:
  """Describes the devices of the run."""
  axes = ' x '.join(f'{axis} {size}' for axis, size in mesh.shape.items())
  return f'{mesh.size} {mesh.devices.flat[0].platform} device(s)' + (f' as {axes}' if mesh.size > 1 else '')


def _count(weights: dict[str, jax.Array]) -> int:
  return sum(array.size for array in weights.values())


def _fresh_at_start(fresh: list[str], init_from: str) -> list[str]:
  """The untrained parts of the initial model: missing from `init_from`, or untrained there too."""
  lacking = [name for name in fresh if not is_position(name)]  # positional encodings are random and never trained
  return sorted({*parts_of(lacking), *(fresh_parts(init_from) if init_from else ())})


def _untrained(progress: Progress, state: TrainState, step: int) -> list[str]:
  """The parts that were fresh at the start and still are, because none of their parameters is trained."""
  trained = parts_of(state.params) if step else []
  return [part for part in progress.fresh if part not in trained]


if __name__ == '__main__':
  command_line.run(main)
