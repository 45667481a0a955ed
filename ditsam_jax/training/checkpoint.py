"""Checkpoints of a run: saved atomically in the background, and verified before use.

  checkpoints/40/state/         all arrays of the train state, saved by Orbax
  checkpoints/40/run.json       the rest: data position, random state, config, progress
  checkpoints/40/manifest.json  size and checksum of every other file

A checkpoint is written under another name, the manifest last, and then gets its number, see storage/numbered.py. So a
numbered folder without a matching manifest is damaged, and anything else was left by a killed process and is removed.
Older checkpoints are deleted only afterwards. With several hosts, the first one does all this except for Orbax's part.
"""

import contextlib
import dataclasses
import json
import os
import secrets
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from ditsam_jax.data.pipeline import BatchStream
from ditsam_jax.errors import UserError
from ditsam_jax.parallel import distributed
from ditsam_jax.parallel.save_barrier import SaveBarrier
from ditsam_jax.storage import numbered
from ditsam_jax.storage.bucket import AnyPath
from ditsam_jax.storage.files import read_json
from ditsam_jax.storage.numbered import Numbered
from ditsam_jax.terminal import printable, say
from ditsam_jax.training.step import TrainState
from ditsam_jax.training.workdir import differences

_NONE, _NONE_INTACT = -1, -2  # in place of a step: there are no checkpoints, or only damaged ones
_RUN = 'run.json'


def _is_step(value: Any) -> bool:
  return type(value) is int and 0 <= value <= 2**31


# Validates the fields of `Progress` read from a file.
_PROGRESS: dict[str, Callable[[Any], bool]] = {
  'evaluated': lambda value: value == -1 or _is_step(value),
  'best_step': lambda value: value is None or _is_step(value),
  'best_score': lambda value: value is None or type(value) in (int, float),
  'fresh': lambda value: isinstance(value, list) and all(type(part) is str for part in value),
}


@dataclasses.dataclass
class Progress:
  """A run's progress, apart from the train state."""

  evaluated: int = 0  # step of the last evaluation on the validation split; -1: the start is still to be evaluated
  best_step: int | None = None  # step with the highest validation score, whose checkpoint is kept
  best_score: float | None = None
  fresh: list[str] = dataclasses.field(
    default_factory=list
  )  # parts of the model that were not initialised from a model

  def improved(self, step: int, score: float) -> bool:
    """Records a score and returns True if it is the highest so far; on a tie, the earlier step stays the best."""
    if self.best_score is not None and not score > self.best_score:
      return False
    self.best_step, self.best_score = step, score
    return True


class Checkpoints:
  """The checkpoints in `workdir`/checkpoints: the latest and the best. Leaving the context waits for the last save.

  Args:
    workdir: a folder used by this run only.
    keep: number of recent checkpoints to keep.
    config: the run's config as plain containers, stored in each checkpoint.
    on_failure: 'continue' or 'stop' if a checkpoint cannot be written.
    still_ours: called before a checkpoint gets its number; raises OSError if another run has taken over the workdir.

  Raises:
    UserError: all checkpoints are damaged. Damaged checkpoints newer than the newest intact one are reported on stderr
      and skipped.
  """

  def __init__(
    self,
    workdir: AnyPath,
    keep: int,
    config: dict[str, Any],
    on_failure: str = 'continue',
    still_ours: Callable[[], None] = lambda: None,
  ):
    self._folder = workdir.absolute() / 'checkpoints'
    self._numbered = numbered.at(self._folder)
    self._keep, self._config, self._on_failure, self._still_ours = keep, config, on_failure, still_ours
    self._attempt = 0  # of the newest intact checkpoint, see storage/numbered.py
    self._steps = self._intact_steps()
    self._barrier = SaveBarrier()
    self._orbax = ocp.StandardCheckpointer(async_options=ocp.AsyncOptions(barrier_sync_fn=self._barrier))
    self._writing: int | None = None  # the step being written
    self._thread: threading.Thread | None = None
    self._failure: Exception | None = None
    self._failed = False  # whether a save has failed, reported or not

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, kind, *exception):
    try:
      if kind is None:
        self.wait()
      self._join()
    finally:
      self._orbax.close()
      if self._failed and distributed.is_first():  # threads of a failed save may have written since
        with contextlib.suppress(OSError):
          self._clear_leftovers()

  @property
  def latest_step(self) -> int | None:
    """The step of the newest intact checkpoint, or None."""
    return self._steps[-1] if self._steps else None

  def save(self, state: TrainState, iterator: BatchStream, progress: Progress) -> None:
    """Starts saving in the background, after the previous save; does nothing if this step is already saved.

    Raises:
      UserError: this save or the previous one failed, and `on_failure` is 'stop'.
    """
    self.wait()
    step = int(state.step)
    if step in self._steps:
      return
    run = {
      'step': step,
      'random_state': {'seed': self._config.get('seed'), 'step': step},
      'position': iterator.get_state(),
      'progress': dataclasses.asdict(progress),
      'config': self._config,
    }
    self._writing = step
    attempt = -1
    try:
      if distributed.is_first():
        attempt = secrets.randbelow(numbered.ATTEMPTS)
        self._clear_leftovers()
        folder = self._numbered.unfinished(step, attempt)
        folder.mkdir(parents=True)
        (folder / _RUN).write_text(json.dumps(run, indent=1, default=_plain) + '\n')
    except OSError as error:
      self._failure, attempt = error, -1
    attempt = int(distributed.from_first(np.asarray(attempt, np.int32)))  # or else the others would wait forever
    self._barrier.begin(f'save-{step}-{attempt}')
    if attempt >= 0:
      try:
        # Copies the arrays before it returns.
        self._orbax.save(os.fspath(self._numbered.unfinished(step, attempt) / 'state'), _flatten(state))
      except Exception as error:  # Orbax and TensorStore raise various exceptions for a full disk
        self._failure = error
    elif self._failure is None:
      self._failure = RuntimeError('the first host could not start writing')
    self._thread = threading.Thread(target=self._complete, args=(step, attempt, progress.best_step))
    self._thread.start()

  def check(self) -> None:
    """Reports a failed background save. Raises UserError if `on_failure` is 'stop'.

    With several hosts, failures are reported at the next save, when the hosts synchronise.
    """
    if distributed.alone() and self._thread and not self._thread.is_alive():
      self.wait()

  def wait(self) -> None:
    """Waits for the background save and reports a failure, see `check`. All hosts must call it."""
    if self._thread is None:
      return
    self._join()
    if distributed.on_any_host(self._failure is not None):
      self._failure = self._failure or RuntimeError('another host could not write its part')
      self._steps = [step for step in self._steps if step != self._writing]
    self._report_failure()

  def restore(self, state: TrainState, iterator: BatchStream) -> tuple[TrainState, Progress]:
    """Restores the newest readable checkpoint, and the iterator's position.

    Args:
      state: arrays or `jax.ShapeDtypeStruct`s with the shardings of the result, which may differ from those at saving.
      iterator: an iterator over the same data.

    Raises:
      UserError: the checkpoint belongs to another config, or none can be read. Newer unreadable checkpoints are
        reported on stderr and skipped.
    """
    while True:
      folder = self._numbered.place(self._steps[-1], self._attempt)
      found, failure = None, None
      try:
        found = self._read(folder, state, iterator)
      except UserError:
        raise
      except Exception as error:  # Orbax, TensorStore and iterators raise various exceptions
        failure = error
      if not distributed.on_any_host(found is None) and found:
        return found
      problem = f'checkpoint {folder} cannot be read ({_reason(failure)})'
      if len(self._steps) == 1:
        raise UserError(f'{problem}; use the version that wrote it, or choose a new --workdir') from failure
      distributed.tell(f'{problem}; trying the previous one')
      self._steps = self._intact_steps(below=self.latest_step)

  def _read(self, folder: AnyPath, state: TrainState, iterator: BatchStream) -> tuple[TrainState, Progress]:
    run = _read_run(folder, self._steps[-1])
    if changed := differences(run['config'], self._config):
      raise UserError(
        f'checkpoint {folder} belongs to another config ({"; ".join(changed[:4])}); choose another --workdir'
      )
    restored = self._orbax.restore(
      os.fspath(folder / 'state'), {name: _abstract(x) for name, x in _flatten(state).items()}
    )
    iterator.set_state(run['position'])
    arrays = [restored[name] for name in _flatten(state)]
    return jax.tree.unflatten(jax.tree.structure(state), arrays), Progress(**run['progress'])

  def _intact_steps(self, below: int | None = None) -> list[int]:
    """Steps up to the newest intact checkpoint, as determined by the first host for all."""
    found = _newest_intact(self._numbered, below) if distributed.is_first() else (_NONE, 0)
    newest, self._attempt = map(int, distributed.from_first(np.asarray(found, np.int32)))
    if newest == _NONE_INTACT:
      raise UserError(
        f'no checkpoint in {self._folder} is intact, so this run cannot be resumed; choose another --workdir, '
        f'or delete that folder to start again'
      )
    return [step for step in self._numbered.numbers() if step < newest] + ([newest] if newest != _NONE else [])

  def _complete(self, step: int, attempt: int, best: int | None) -> None:
    """Runs in the background: waits for Orbax, gives the checkpoint its number, and removes older ones."""
    try:
      self._orbax.wait_until_finished()
      if self._failure is None and distributed.is_first():
        self._still_ours()
        self._numbered.complete(step, attempt)
        self._prune(step, best)
    except Exception as error:
      self._failure = self._failure or error
    if self._failure is None:
      self._steps.append(step)
      self._attempt = attempt
      return
    self._failed = True
    if attempt >= 0:
      with contextlib.suppress(Exception):  # the failure is known
        self._barrier.give_up()
    if distributed.is_first():
      with contextlib.suppress(OSError):
        self._clear_leftovers()

  def _clear_leftovers(self) -> None:
    """Removes what killed processes and failed saves left. Raises OSError if another run has taken over."""
    self._still_ours()
    self._numbered.clear_leftovers()

  def _prune(self, newest: int, best: int | None) -> None:
    kept = {*(self._steps + [newest])[-self._keep :], best}
    for step in self._numbered.numbers():
      if step not in kept:
        self._numbered.discard(step)

  def _join(self) -> None:
    if self._thread:
      self._thread.join()
      self._thread = None

  def _report_failure(self) -> None:
    error, self._failure = self._failure, None
    if error is None:
      return
    reason = _reason(error)
    last = (
      'there is no checkpoint yet'
      if self.latest_step is None
      else f'the checkpoint of step {self.latest_step} is intact'
    )
    failed = f'the checkpoint of step {self._writing} could not be written to {self._folder} ({reason}); {last}'
    if self._on_failure == 'stop':
      raise UserError(f'{failed}; free some space, then rerun the command to resume') from error
    distributed.tell(f'warning: {failed}; training continues; free some space before it ends')


def _newest_intact(checkpoints: Numbered, below: int | None = None) -> tuple[int, int]:
  """Returns step and attempt of the newest intact checkpoint.

  Reports newer damaged ones, and removes leftovers of killed runs.
  """
  numbers = checkpoints.numbers()
  checkpoints.clear_leftovers()
  steps = [step for step in numbers if below is None or step < below]
  for step in reversed(steps):
    attempt, problem = checkpoints.intact(step, _RUN)
    problem = problem or _problem_of_run(checkpoints.place(step, attempt), step)
    if problem is None:
      return step, attempt
    say(f'checkpoint {checkpoints.folder / str(step)} is damaged ({problem}); trying the previous one')
  return (_NONE_INTACT if steps or below is not None else _NONE), 0


def _problem_of_run(checkpoint: AnyPath, step: int) -> str | None:
  """Returns what is wrong with run.json in a few words, or None."""
  try:
    _read_run(checkpoint, step)
  except UserError as error:
    return str(error)
  return None


def _read_run(checkpoint: AnyPath, step: int) -> dict[str, Any]:
  """Reads run.json. Raises UserError if a field is missing or invalid."""
  run = read_json(checkpoint / _RUN)
  kinds = {'step': int, 'position': dict, 'progress': dict, 'config': dict}
  if not isinstance(run, dict):
    raise UserError(f'{_RUN} is not a JSON object')
  for name, kind in kinds.items():
    if type(run.get(name)) is not kind:
      raise UserError(f'{_RUN}: {name} is {printable(run.get(name), 80)}')
  if run['step'] != step:
    raise UserError(f'{_RUN} is of step {run["step"]}')
  for name, value in run['progress'].items():
    if name not in _PROGRESS or not _PROGRESS[name](value):
      raise UserError(f'{_RUN}: progress.{printable(name)} is {printable(value, 80)}')
  return run


def _reason(error: BaseException | None) -> str:
  """The reason for a failure, in a few words."""
  if error is None:
    return 'on another host'
  text = str(getattr(error, 'strerror', None) or error).strip() or type(error).__name__
  for known in ('No space left on device', 'File too large', 'Disk quota exceeded'):  # inside TensorStore's message
    if known in text:
      return known
  return printable(text.split('\n')[0])


def _flatten(state: TrainState) -> dict[str, jax.Array]:
  """Leaves by path, so the layout on disk does not depend on the containers."""
  return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def _abstract(leaf: Any) -> Any:
  if isinstance(leaf, jax.Array):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
  return leaf


def _plain(value: Any) -> Any:
  """Converts NumPy scalars and arrays for JSON."""
  if isinstance(value, (np.generic, np.ndarray)):
    return value.tolist()
  raise TypeError(f'{type(value)} in the position of the data iterator')
