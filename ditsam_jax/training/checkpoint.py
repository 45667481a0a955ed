"""Checkpoints of a run: train state and data position, by Orbax, and resume."""

import json
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp

from ditsam_jax.command_line import UserError
from ditsam_jax.training.step import TrainState


class Checkpoints:
  """The checkpoints in `workdir`/checkpoints. Saving goes on in the background; `close` waits for it."""

  def __init__(self, workdir: Path, keep: int):
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
    self._manager = ocp.CheckpointManager(workdir.absolute() / 'checkpoints', options=options)

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *exception):
    self._manager.close()

  @property
  def latest_step(self) -> int | None:
    """Updates done in the newest whole checkpoint."""
    return self._manager.latest_step()

  def save(self, state: TrainState, iterator: grain.DatasetIterator) -> None:
    """Saves unless this step is saved already."""
    step = int(state.step)
    if step == self.latest_step:
      return
    position = json.dumps(iterator.get_state(), default=_plain)
    self._manager.save(step, args=ocp.args.Composite(
        state=ocp.args.StandardSave(_flatten(state)), data=ocp.args.JsonSave({'position': position})))

  def restore(self, state: TrainState, iterator: grain.DatasetIterator) -> TrainState:
    """The newest checkpoint, on the devices and in the layout of `state`; the iterator is put into its place."""
    try:
      restored = self._manager.restore(self.latest_step, args=ocp.args.Composite(
          state=ocp.args.StandardRestore(_flatten(state)), data=ocp.args.JsonRestore()))
    except Exception as error:  # Orbax and TensorStore raise many kinds for damaged files
      reason = str(error).strip().split('\n')[0][:200]
      raise UserError(f'checkpoint {self._manager.directory / str(self.latest_step)} cannot be read ({reason}); '
                      f'delete that folder to go on from the one before, or choose a new --workdir') from error
    iterator.set_state(json.loads(restored['data']['position']))
    leaves = [restored['state'][name] for name in _flatten(state)]
    return jax.tree.unflatten(jax.tree.structure(state), leaves)


def _flatten(state: TrainState) -> dict[str, jax.Array]:
  """Leaves by path: a layout of plain names, whatever containers hold them."""
  return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def _plain(value: Any) -> Any:
  """Numpy scalars and arrays, for JSON."""
  if isinstance(value, (np.generic, np.ndarray)):
    return value.tolist()
  raise TypeError(f'{type(value)} in the position of the data iterator')
