"""Commands as processes: signals at any moment, and disks that fill up."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

from ditsam_jax.storage import saved_model
from tests.convert import torch_models
from tests.data.own.pictures import make as make_own
from tests.data.refcoco_downloads import make
from tests.fuzz.outcomes import ACCEPTED, PARTLY, Violation, check_folder, check_printed
from tests.fuzz.seeds import save_picture, save_text_model

_ROOT = Path(__file__).parents[2]
_TRAINING = [
  '--config=ldit:shapes', '--workdir=out/run', '--config.total_steps=3', '--config.checkpoint_every=1',
  '--config.eval_every=0', '--config.data.batch_size=2', '--config.data.data_dir=data', '--config.data.threads=1',
  '--config.eval_samples=4', '--config.data.scenes.train=8', '--config.data.scenes.val=4',
  '--config.data.scenes.test=4',
]  # fmt: skip
_COMMANDS = {
  'predict': [
    '-m', 'ditsam_jax.predict', '--checkpoint=model', '--image=a.png', '--text=the red circle', '--output=out',
    '--json=out.jsonl',
  ],
  'prepare': [
    '-m', 'ditsam_jax.prepare', '--dataset=refcoco', '--annotations=in/annotations', '--images=in/train2014',
    '--data-dir=out',
  ],
  'prepare own': [
    '-m', 'ditsam_jax.prepare', '--name=mine', '--annotations=own/mine.jsonl', '--images=own/photos', '--data-dir=out',
  ],
  'export': ['-m', 'ditsam_jax.export', '--checkpoint=model', '--output=out/model'],
  'torch_to_flax': [
    str(_ROOT / 'convert/torch_to_flax.py'), '--input=a.pth', '--output=out/model', *torch_models.TEXT_FLAGS,
    '--fusion=layer_wise',
  ],
  'flax_to_torch': [str(_ROOT / 'convert/flax_to_torch.py'), '--input=model', '--output=out/a.pth'],
  'train': ['-m', 'ditsam_jax.train', *_TRAINING],
}  # fmt: skip
_TIMEOUT = 90  # seconds after a signal; the machine may be busy


def prepare(folder: Path) -> None:
  save_text_model(folder / 'model')
  save_picture(folder / 'a.png')
  make(folder / 'in').write()
  (folder / 'own').mkdir()
  own = make_own(folder / 'own')
  own.write_lines([{'image': name, 'text': 'a box', 'mask': f'masks/{name}'} for name in own.masks])
  tensors = torch_models.weights_of_peer(torch_models.random_peer(torch_models.text_config('layer_wise')))
  torch_models.save_release(tensors, folder / 'a.pth')


def case(made: Path, work: Path, chance: random.Random, note) -> str:
  for path in made.iterdir():
    (work / path.name).symlink_to(path)
  (work / 'out').mkdir()
  name = chance.choice(list(_COMMANDS))
  kind = chance.choice(['SIGINT', 'SIGTERM', 'full', 'two'])
  if kind == 'full':
    limit = chance.choice([0, 1000, 20_000, 100_000])
    note(f'{name}: files of at most {limit} bytes')
    process = _start(name, work, limit)
    errors = process.communicate(timeout=200)[1]
    if process.returncode not in (0, 2):
      raise Violation('traceback', f'status {process.returncode}: {errors[-1500:]}')
    outcome = ACCEPTED if process.returncode == 0 else PARTLY
  else:
    number = signal.SIGTERM if kind == 'SIGTERM' else signal.SIGINT
    wait = chance.choice([chance.uniform(0, 1), chance.uniform(0, 12)])
    note(f'{name}: {kind} after {wait:.2f} s')
    process = _start(name, work, None)
    outcome, errors = _signalled(process, number, wait, 2 if kind == 'two' else 1, name)
  check_printed(errors)
  _check_output(work, signalled=kind != 'full')
  return outcome


def _start(name: str, work: Path, limit: int | None) -> subprocess.Popen:
  def before() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a script's background jobs and their children ignore it
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing then fails with an error, as on a full disk
    if limit is not None:
      resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

  environment = {
    **os.environ,
    'PYTHONPATH': str(_ROOT),
    'JAX_ENABLE_COMPILATION_CACHE': 'true' if limit is None else 'false',
  }
  return subprocess.Popen(
    [sys.executable, *_COMMANDS[name]], cwd=work, env=environment, text=True, preexec_fn=before,
    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
  )  # fmt: skip


def _signalled(process: subprocess.Popen, number: int, wait: float, times: int, name: str) -> tuple[str, str]:
  until = time.monotonic() + 60
  while not _catches(process.pid) and process.poll() is None and time.monotonic() < until:
    time.sleep(0.005)  # until then Python is starting, and none of our code runs
  time.sleep(wait)
  for _ in range(times):
    process.send_signal(number)
    time.sleep(0.3)
  try:
    errors = process.communicate(timeout=_TIMEOUT)[1]
  except subprocess.TimeoutExpired as error:
    process.kill()
    raise Violation('hang', f'{name} still runs after signal {number}: {process.communicate()[1][-500:]}') from error
  if process.returncode == 128 + number:
    last = errors.strip().splitlines()[-1:]
    if not last or 'Traceback' in errors:
      raise Violation('message', f'after a signal: {errors[-500:]!r}')
    return PARTLY, errors
  if process.returncode:
    raise Violation('status', f'{process.returncode} after signal {number}: {errors[-1500:]}')
  return ACCEPTED, errors  # it had finished before the signal


def _catches(pid: int) -> bool:
  try:
    status = Path(f'/proc/{pid}/status').read_text()
  except OSError:
    return True
  caught = next((line.split()[1] for line in status.splitlines() if line.startswith('SigCgt')), '0')
  return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def _check_output(work: Path, signalled: bool) -> None:
  """Checks that every output under its final name is complete."""
  output = work / 'out'
  if not signalled:
    check_folder(output)
  for description in output.rglob('model.json'):
    if not any(part.startswith('.') for part in description.relative_to(work).parts):
      saved_model.load(description.parent)
  for info in output.rglob('dataset_info.json'):
    if 'incomplete' not in str(info):
      from ditsam_jax.data.referring import ReferringSource

      len(ReferringSource(info.parent, 'train'))
  if (output / 'a.pth').exists():
    import torch

    torch.load(output / 'a.pth', weights_only=True)
