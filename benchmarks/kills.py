"""Kills a training run repeatedly and compares it with an undisturbed run: python benchmarks/kills.py --kills=20

A tiny model is trained once undisturbed, and once by processes that receive SIGKILL at random moments (during start-up,
between steps, while a checkpoint is being written) and are restarted with the same command. Both must end with the same
hash of all weights (`weights_sha256`) and byte-identical logs. Prints a table of the kills and of the unfinished files
each left on disk, writes it to OUTPUT/kills.json, and exits with status 1 if anything differs.
"""

import argparse
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
AIMS = ('write', 'steps', 'write', 'start')  # in turn
FIELDS = {
  'init_from': '',
  'data.scenes.image_size': 64,
  'data.scenes.train': 24,
  'data.scenes.val': 4,
  'data.scenes.test': 4,
  'data.batch_size': 4,
  'data.threads': 2,
  'model.image_size': 64,
  'model.fusion_dropout': 0.1,
  'model.image_encoder.width': 48,
  'model.image_encoder.depth': 1,
  'model.image_encoder.global_blocks': [0],
  'model.text_encoder.width': 48,
  'model.text_encoder.depth': 1,
  'model.mask_decoder.width': 48,
  'optimizer.name': 'adam',
  'optimizer.warmup_steps': 5,
  'log_every': 1,
  'checkpoint_every': 3,
  'eval_every': 20,
  'eval_samples': 8,
  'eval_batch_size': 8,
  'final_split': 'val',
}


@dataclasses.dataclass
class Kill:
  """A killed process and the files it left."""

  aim: str  # during which phase it was to be killed
  seconds: float  # its lifetime
  resumed_at: int  # step of the newest complete checkpoint before
  last_step: int  # in the log
  checkpoint: int  # step of the newest complete checkpoint after
  left_behind: str  # unfinished part of a checkpoint; '' if none was being written


def run(output: Path, kills: int, steps: int, seed: int = 0) -> dict[str, Any]:
  """Runs both trainings and compares them.

  Args:
    output: folder for both runs, emptied first.
    kills: how often the second training is killed.
    steps: number of training steps; must be large enough for the training to outlast the last kill.
    seed: seed of the moments of the kills.
  """
  shutil.rmtree(output, ignore_errors=True)
  output.mkdir(parents=True)
  chance = random.Random(seed)
  whole, killed = output / 'whole', output / 'killed'
  _finish(output, whole, steps)
  rows = []
  for number in range(kills):
    rows.append(_kill(output, killed, steps, AIMS[number % len(AIMS)], chance))
    print(json.dumps(dataclasses.asdict(rows[-1])), file=sys.stderr, flush=True)
  _finish(output, killed, steps)
  prints = [json.loads((workdir / 'metrics.json').read_text())['weights_sha256'] for workdir in (whole, killed)]
  return {
    'steps': steps,
    'kills': [dataclasses.asdict(row) for row in rows],
    'writes_hit': sum(bool(row.left_behind) for row in rows),
    'weights_sha256': prints,
    'same_weights': prints[0] == prints[1],
    'same_log': (whole / 'train_log.jsonl').read_bytes() == (killed / 'train_log.jsonl').read_bytes(),
  }


def start(output: Path, workdir: Path, steps: int, *more: str) -> subprocess.Popen:
  """Starts training as a process; compiled programs are cached, in `output` by default, so only the first compiles."""
  environment = {
    **os.environ,
    'PYTHONPATH': str(ROOT),
    'JAX_COMPILATION_CACHE_DIR': os.environ.get('JAX_COMPILATION_CACHE_DIR', str(output / 'compiled')),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }
  fields = {**FIELDS, 'data.data_dir': output / 'data', 'total_steps': steps}
  with (output / 'stderr.txt').open('a') as errors:
    return subprocess.Popen(
      [
        sys.executable,
        '-m',
        'ditsam_jax.train',
        f'--config={ROOT / "configs/ldit.py"}:shapes',
        f'--workdir={workdir}',
        *(f'--config.{name}={value}' for name, value in fields.items()),
        *more,
      ],
      env=environment,
      stdout=subprocess.DEVNULL,
      stderr=errors,
    )


def _finish(output: Path, workdir: Path, steps: int) -> None:
  if start(output, workdir, steps).wait():
    raise SystemExit(f'the training failed; its last lines are in {output / "stderr.txt"}')


def _kill(output: Path, workdir: Path, steps: int, aim: str, chance: random.Random) -> Kill:
  checkpoints, log = workdir / 'checkpoints', workdir / 'train_log.jsonl'
  resumed_at, changed, older = _newest(checkpoints), _changed(log), _unfinished(checkpoints)
  started = time.perf_counter()
  process = start(output, workdir, steps)
  if aim == 'start':
    _sleep(process, chance.uniform(0, 8))
  else:
    _wait(process, lambda: _changed(log) != changed and _last_step(log) > resumed_at)  # the log may be truncated first
    for _ in range(chance.randrange(3)):
      whole = _newest(checkpoints)
      _wait(process, lambda: _newest(checkpoints) != whole)
    if aim == 'write':
      _wait(process, lambda: _unfinished(checkpoints) - older)
      _sleep(process, chance.uniform(0, 0.5) ** 2)
    else:
      _sleep(process, chance.uniform(0, 1))
  if process.poll() is not None:
    raise SystemExit(f'the training ended before it was killed; increase --steps, or see {output / "stderr.txt"}')
  process.send_signal(signal.SIGKILL)
  process.wait()
  return Kill(
    aim,
    round(time.perf_counter() - started, 2),
    resumed_at,
    _last_step(log),
    _newest(checkpoints),
    _left_behind(checkpoints, older),
  )


def _unfinished(checkpoints: Path) -> set[tuple[str, int]]:
  """Returns name and modification time of checkpoints that are being written or deleted."""
  found = set()
  for pattern in ('*.writing', '*.deleting'):
    for folder in checkpoints.glob(pattern):
      try:
        found.add((folder.name, folder.stat().st_mtime_ns))
      except FileNotFoundError:  # finished in the meantime
        pass
  return found


def _left_behind(checkpoints: Path, older: set[tuple[str, int]]) -> str:
  """Describes the unfinished checkpoint that was not there before; '' if there is none."""
  for name, _ in sorted(_unfinished(checkpoints) - older, reverse=True):
    if name.endswith('.deleting'):
      return 'partly deleted old checkpoint'
    if (checkpoints / name / 'manifest.json').exists():
      return 'manifest, not yet renamed'
    return 'all arrays, no manifest' if (checkpoints / name / 'state').is_dir() else 'some arrays'
  return ''


def _newest(checkpoints: Path) -> int:
  return max((int(path.name) for path in checkpoints.glob('*') if path.name.isdecimal()), default=0)


def _last_step(log: Path) -> int:
  lines = log.read_text().splitlines() if log.exists() else []
  return json.loads(lines[-1])['step'] if lines else 0


def _changed(file: Path) -> int:
  return file.stat().st_mtime_ns if file.exists() else 0


def _wait(process: subprocess.Popen, condition) -> None:
  while process.poll() is None and not condition():
    time.sleep(0.001)


def _sleep(process: subprocess.Popen, seconds: float) -> None:
  end = time.perf_counter() + seconds
  _wait(process, lambda: time.perf_counter() >= end)


def _table(result: dict[str, Any]) -> str:
  lines = [f'{"kill":>4} {"aimed at":8} {"lived s":>7} {"resumed":>7} {"last step":>9} {"checkpoint":>10}  left behind']
  for number, row in enumerate(result['kills'], 1):
    lines.append(
      f'{number:4} {row["aim"]:8} {row["seconds"]:7} {row["resumed_at"]:7} {row["last_step"]:9} '
      f'{row["checkpoint"]:10}  {row["left_behind"]}'
    )
  same = ('different', 'equal')
  return '\n'.join(
    [
      *lines,
      f'{len(result["kills"])} kills, {result["writes_hit"]} during a write; '
      f'{same[result["same_weights"]]} weights, {same[result["same_log"]]} logs',
    ]
  )


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--kills', type=int, default=20)
  parser.add_argument('--steps', type=int, default=400)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--output', type=Path, default=Path('runs/kills'), help='folder, emptied first')
  options = parser.parse_args()
  result = run(options.output.absolute(), options.kills, options.steps, options.seed)
  (options.output / 'kills.json').write_text(json.dumps(result, indent=1) + '\n')
  print(_table(result))
  return 0 if result['same_weights'] and result['same_log'] else 1


if __name__ == '__main__':
  sys.exit(main())
