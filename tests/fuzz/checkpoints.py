"""Damaged checkpoints of a run: it resumes from the newest intact one, or is refused."""

import contextlib
import io
import json
import random
import shutil
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np

from ditsam_jax.training.checkpoint import Checkpoints, Progress
from ditsam_jax.training.step import TrainState
from ditsam_jax.training.workdir import Workdir
from tests.fuzz.mutations import damaged, damaged_json, make_odd
from tests.fuzz.outcomes import ACCEPTED, REFUSED, Violation, attempt, check_folder, check_printed

_CONFIG = {'seed': 3, 'optimizer': {'name': 'adam'}}


def _numbers():
  return iter(grain.MapDataset.range(100).to_iter_dataset())


def _state(step: int) -> TrainState:
  weights = {'a.kernel': jnp.full((64, 8), float(step)), 'b.bias': jnp.arange(8.0) + step}
  average = jax.tree.map(jnp.copy, weights)
  return TrainState(jnp.asarray(step, jnp.int32), weights, average, {'count': jnp.asarray(step)}, {}, jnp.zeros(2, int))


def prepare(folder: Path) -> None:
  with Workdir(folder) as workdir:
    workdir.claim(_CONFIG)
  with Checkpoints(folder, 3, _CONFIG) as checkpoints:
    batches = _numbers()
    for step in (1, 2, 3):
      next(batches)
      checkpoints.save(_state(step), batches, Progress(evaluated=step))


def case(made: Path, work: Path, chance: random.Random, note) -> str:
  run = work / 'run'
  shutil.copytree(made, run)
  what, hurt = [], set()
  for _ in range(chance.choice([1, 1, 1, 2, 4])):
    step = chance.choice([3, 3, 3, 2, 1])
    hurt.add(step)
    what.append(f'{step}: {_damage(run / "checkpoints" / str(step), chance)}')
  if chance.random() < 0.1:
    file = run / 'config.json'
    what.append(make_odd(file, chance) if chance.random() < 0.5 else damage_json(file, chance))
  if chance.random() < 0.2:
    (run / 'checkpoints' / chance.choice(['4.writing', '5.deleting', 'notes', '007', '-1', '9' * 30])).mkdir()
  note('; '.join(what))
  printed = io.StringIO()
  with contextlib.redirect_stderr(printed):
    outcome, restored = attempt(lambda: _resume(run))
  check_printed(printed.getvalue())
  if outcome == REFUSED:
    return REFUSED
  check_folder(run / 'checkpoints')
  state, progress, following = restored
  step = int(state.step)
  wanted = jax.tree.leaves(_state(step))
  if step not in (1, 2, 3) or any(
    (np.asarray(a) != np.asarray(b)).any() for a, b in zip(jax.tree.leaves(state), wanted)
  ):
    raise Violation('wrong result', f'the state of step {step} differs from the saved one')
  if following != step or progress.evaluated != step:
    raise Violation('wrong result', f'step {step} is followed by {following}, {progress}')
  if step < max({1, 2, 3} - hurt, default=0):
    raise Violation('wrong result', f'resumed at {step}, although a newer checkpoint is intact')
  return ACCEPTED


def _resume(run: Path):
  with Workdir(run) as workdir:
    workdir.claim(_CONFIG)
    with Checkpoints(run, 3, _CONFIG) as checkpoints:
      if checkpoints.latest_step is None:
        raise Violation('wrong result', 'the run would start over')
      batches = _numbers()
      state, progress = checkpoints.restore(_state(0), batches)
      return state, progress, next(batches)


def _damage(checkpoint: Path, chance: random.Random) -> str:
  files = sorted(path for path in checkpoint.rglob('*') if path.is_file()) if checkpoint.is_dir() else []
  if not files:
    return 'already missing'
  file = chance.choice(files)
  name = str(file.relative_to(checkpoint))
  match chance.choice(['bytes', 'bytes', 'json', 'odd', 'folder', 'added']):
    case 'json':
      file = chance.choice(
        [path for path in (checkpoint / 'run.json', checkpoint / 'manifest.json') if path.is_file()] or [file]
      )
      return f'{file.name} {damage_json(file, chance)}'
    case 'odd':
      return f'{name} {make_odd(file, chance)}'
    case 'folder':
      return make_odd(chance.choice([checkpoint, checkpoint / 'state']), chance)
    case 'added':
      (file.parent / 'more').write_bytes(b'x')
      return 'an extra file'
  data, what = damaged(file.read_bytes(), chance)
  file.write_bytes(data)
  return f'{name} {what}'


def damage_json(file: Path, chance: random.Random) -> str:
  """Damages a JSON file in place."""
  try:
    content = json.loads(file.read_bytes())
  except ValueError:
    return 'damaged already'
  if not isinstance(content, dict | list) or not content:
    return 'damaged already'
  data, what = damaged_json(content, chance)
  file.write_bytes(data)
  return what
