"""Reports updates skipped for a non-finite loss or gradient; stops the run after too many in a row."""

from typing import NamedTuple

import jax
import numpy as np

from ditsam_jax.errors import UserError
from ditsam_jax.parallel import distributed
from ditsam_jax.storage.bucket import AnyPath
from ditsam_jax.storage.files import written_whole


class _Step(NamedTuple):
  number: int
  batch: dict[str, np.ndarray]  # this host's rows
  in_a_row: jax.Array  # int32 [], consecutive skipped updates up to this step


class SkippedUpdates:
  """Checks each step after the next one has been dispatched, so devices never wait for the host.

  Args:
    workdir: where the offending batch is saved.
    limit: number of consecutive skipped updates that stops the run.
  """

  def __init__(self, workdir: AnyPath, limit: int):
    self._workdir, self._limit = workdir, limit
    self._last: _Step | None = None

  def watch(self, step: int, batch: dict[str, np.ndarray], metrics: dict[str, jax.Array]) -> None:
    """Registers a dispatched step and checks the previous one. At the limit, saves its batch and raises UserError."""
    self.look()
    self._last = _Step(step, batch, metrics['skipped_in_a_row'])

  def look(self) -> None:
    """Waits for the last registered step and checks it, see `watch`."""
    step, self._last = self._last, None
    if step is None:
      return
    in_a_row = int(step.in_a_row)
    if in_a_row >= self._limit:
      raise UserError(
        f'loss or gradient were not finite for {in_a_row} steps in a row, up to step {step.number} '
        f'(config.max_skipped is {self._limit}); {self._save(step)}; restart with a lower '
        f'config.optimizer.learning_rate, or fix the data'
      )
    if in_a_row == 1:
      distributed.tell(f'step {step.number}: loss or gradient is not finite; this update is skipped')

  def _save(self, step: _Step) -> str:
    """Saves the batch; returns a clause that says where, or why not."""
    host = '' if distributed.alone() else f'_host{distributed.place()[0]}'
    path = self._workdir / f'skipped_batch_{step.number}{host}.npz'
    try:
      with written_whole(path) as unfinished, unfinished.open('wb') as file:
        np.savez(file, **step.batch)  # pyright: ignore[reportArgumentType]  # no array is named `allow_pickle`
    except OSError as error:
      return f'its batch could not be written to {path} ({error.strerror})'
    return f'its batch is in {path}'
