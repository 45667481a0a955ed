"""What a run tells people: a progress bar, TensorBoard without TensorFlow, one JSON line an interval."""

import json
import os
from pathlib import Path
import sys
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter
import tqdm


def write_text(path: Path, text: str) -> None:
  """Writes a file whole or not at all."""
  temporary = path.with_name(f'.{path.name}.{os.getpid()}')
  temporary.write_text(text)
  os.replace(temporary, path)


def write_json(path: Path, data: Any) -> None:
  """Writes JSON whole or not at all."""
  write_text(path, json.dumps(data, indent=1) + '\n')


class RunLog:
  """Log of a run in `workdir`: `train_log.jsonl`, `tensorboard/`, a bar on stderr. A resumed run continues them."""

  def __init__(self, workdir: Path, *, first_step: int, total_steps: int):
    self._lines = (workdir / 'train_log.jsonl').open('a')
    self._board = SummaryWriter(str(workdir / 'tensorboard'), purge_step=first_step + 1 if first_step else None)
    self._bar = tqdm.tqdm(total=total_steps, initial=first_step, desc='training', unit=' steps', mininterval=1.0,
                          file=sys.stderr, dynamic_ncols=True)
    self._shown: dict[str, str] = {}

  def __enter__(self) -> 'RunLog':
    return self

  def __exit__(self, *exception):
    self._bar.close()
    self._board.close()
    self._lines.close()

  def advance(self) -> None:
    """One more step done."""
    self._bar.update()

  def scalars(self, step: int, values: dict[str, float], group: str = 'train') -> None:
    """Numbers of a step: to all three."""
    self._lines.write(json.dumps({'step': step, **{f'{group}/{name}': value for name, value in values.items()}}) + '\n')
    self._lines.flush()
    for name, value in values.items():
      self._board.add_scalar(f'{group}/{name}', value, step)
    for name, label in (('loss', 'loss'), ('mIoU', 'val mIoU')):
      if name in values:
        self._shown[label] = f'{values[name]:.4g}'
    self._bar.set_postfix(self._shown, refresh=False)

  def panel(self, step: int, image: np.ndarray) -> None:
    """A picture of predictions, uint8 [h, w, 3], to TensorBoard."""
    self._board.add_image('predictions', image, step, dataformats='HWC')

  def say(self, text: str) -> None:
    """A line above the bar."""
    self._bar.write(text, file=sys.stderr)
