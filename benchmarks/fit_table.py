"""Computes docs/which_accelerator.md, what each accelerator can do: JAX_PLATFORMS=cpu python benchmarks/fit_table.py

Needs the TPU compiler for TPUs (the extra 'tpu') and JAX's CUDA plugin for GPUs ('cuda12' or 'cuda13'), but no
accelerator. For ViT-B, L and H at 512 and 1024, inference and training, on one device of each kind, it compiles
programs with three batch sizes and derives the largest batch and the time of a step from them. Devices of one
architecture share programs. Figures are kept in benchmarks/fit_table.json, so the command can be stopped and rerun at
any time; smaller models come first, and the page is written with what is known. --jobs only lists what is left.

A part: python benchmarks/fit_table.py --models vit_b --sizes 512 --devices l4:1 rtx4090:1 --work inference
"""

import argparse
import dataclasses
import functools
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import jax

from ditsam_jax.analysis import fit, planner
from ditsam_jax.analysis.figures import Figures, Store
from ditsam_jax.analysis.planner import Choice, Line, Settings
from ditsam_jax.analysis.targets import Target, devices_of, parse_topology
from ditsam_jax.analysis.workloads import Inference, Training
from ditsam_jax.config import checks, files, lengths
from ditsam_jax.errors import UserError
from ditsam_jax.models.config import PRESETS
from ditsam_jax.models.execution import automatic
from ditsam_jax.storage.files import write_text
from ditsam_jax.terminal import say

DEVICES = (
  *('t4:1', 'l4:1', 'rtx4090:1', 'a100-40:1', 'a100-80:1', 'h100:1', 'b200:1'),
  *('v5e:1x1', 'v6e:1x1', 'v5p:2x2x1'),
)
SIZES = (512, 1024)
WORK = ('inference', 'training')
NAMES = {'vit_b': 'ViT-B', 'vit_l': 'ViT-L', 'vit_h': 'ViT-H'}
# ViT-L is the config of ViT-H with another encoder.
CONFIGS = {'vit_b': 'ldit', 'vit_l': 'ldit_vith', 'vit_h': 'ldit_vith'}
PAGE = ROOT / 'docs' / 'which_accelerator.md'
# Seconds per program, for estimates of the time left until some are measured. Blocks are scanned, so the size of the
# model matters little.
GUESS = {'inference': 40.0, 'training': 90.0}

# Images of a micro-batch below which a TPU may be faster if it recomputes more: its fixed costs are high.
FEW = 8


class Missing(Exception):
  """A figure that is needed next and not known."""

  def __init__(self, job: 'Job'):
    self.job = job


@dataclasses.dataclass(frozen=True)
class Case:
  """A cell of the tables: one model, size and kind of work on one device."""

  model: str
  size: int
  work: str
  device: str

  @property
  def target(self) -> Target:
    return parse_topology(self.device)

  @property
  def overrides(self) -> list[str]:
    """Changes of the named config."""
    found = [] if self.size == 512 else [f'model.image_size={self.size}']
    if self.model == 'vit_l':
      large, huge = (dataclasses.asdict(PRESETS[name]().image_encoder) for name in ('vit_l', 'vit_h'))
      for name, value in large.items():
        if value != huge[name]:
          found.append(f'model.image_encoder.{name}={str(value).replace(" ", "").replace("(", "[").replace(")", "]")}')
    return found

  @property
  def settings(self) -> list[Settings]:
    """From the fastest to the one that needs the least memory."""
    dtype = 'bfloat16' if self.target.chip.bf16 else 'float32'
    return [
      Settings(dtype, remat, '')
      for remat in (automatic(self.target.platform) if self.work == 'training' else ('none',))
    ]


@dataclasses.dataclass(frozen=True)
class Job:
  """A program to compile."""

  case: Case
  settings: Settings
  images: int


@functools.cache
def config_of(model: str, size: int):
  case = Case(model, size, 'training', 'h100:1')
  return files.load(CONFIGS[model], case.overrides)


@functools.cache
def workload(case: Case, store: Store) -> Inference | Training:
  config = config_of(case.model, case.size)
  if case.work == 'training':
    return Training(config, case.target, store)
  return Inference(checks.check(config).model, case.target, store)


def solved(case: Case, store: Store) -> tuple[Choice | None, int]:
  """Returns the best choice of a case, None if nothing fits, and the updates of the recipe.

  Raises:
    Missing: the next figure that it takes is not known.
  """
  work = workload(case, store)

  def measure(settings: Settings, images: int, parts: int) -> Figures:
    found = work.known(settings, images, parts)
    if found is None:
      raise Missing(Job(case, settings, images))
    return found

  if isinstance(work, Inference):
    (settings,) = case.settings
    largest, points = planner.predicted(measure, case.target, settings, batches_of(case))
    line = Line.through(points, case.target.chip.name)
    if largest == 0 or line is None:
      return None, 0
    images = min(largest, 8)
    return Choice(settings, largest, 1, images / line.step_seconds(images)), 0
  config = config_of(case.model, case.size)
  run = lengths.resolve(config, lambda: lengths.samples_without_data(checks.check(config)))
  wanted = run.data.batch_size // work.shares
  choices: list[Choice] = []
  for settings in case.settings:
    already = planner.fastest(choices)
    choices += planner.choose(measure, case.target, [settings], wanted, work.gradient_bytes, batches_of(case))
    best = planner.fastest(choices)
    if already or best and (case.target.chip.silicon or wanted // best.accumulate >= min(wanted, FEW)):
      break
  return planner.fastest(choices), run.total_steps


def missing(cases: list[Case], store: Store) -> Iterator[Job]:
  """Yields the next program of each case that lacks one; programs that cases share come once."""
  seen = set()
  for case in cases:
    try:
      solved(case, store)
    except Missing as error:
      job = error.job
      shared = (case.model, case.size, case.work, job.settings, job.images, case.target.compiler)
      if shared not in seen:
        seen.add(shared)
        yield job


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--models', nargs='+', choices=PRESETS, default=list(NAMES))
  parser.add_argument('--sizes', nargs='+', type=int, default=SIZES)
  parser.add_argument('--devices', nargs='+', default=DEVICES)
  parser.add_argument('--work', nargs='+', choices=WORK, default=WORK)
  parser.add_argument('--cache', type=Path, default=ROOT / 'benchmarks' / 'fit_table.json')
  parser.add_argument('--page', type=Path, default=PAGE)
  parser.add_argument('--jobs', action='store_true', help='list the programs that are known to be missing, and stop')
  options = parser.parse_args()
  jax.config.update('jax_platforms', 'cpu')
  store = Store(options.cache)
  cases = [
    Case(model, size, work, device)
    for model in options.models
    for size in options.sizes
    for work in options.work
    for device in options.devices
  ]
  if options.jobs:
    for job in missing(cases, store):
      print(describe(job))
    return 0
  try:
    for device in options.devices:  # every compiler is there, before hours of work
      devices_of(parse_topology(device))
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  try:
    failed = compile_all(cases, store)
  finally:  # also after Ctrl-C
    write_page(options.page, Store(options.cache, outdated=True), store)
    print('written:', options.page)
  for job, reason in failed.items():
    print(f'not compiled: {describe(job)}: {reason}', file=sys.stderr)
  return int(bool(failed))


def compile_all(cases: list[Case], store: Store) -> dict[Job, str]:
  """Compiles all missing programs, with progress and the time left by what programs of a kind took so far.

  Returns:
    The programs that the compiler failed on, with the reason. Their cases stay unknown.
  """
  took: dict[str, list[float]] = {work: [] for work in WORK}
  count, failed = 0, {}
  while jobs := [job for job in missing(cases, store) if job not in failed]:
    # A case needs three figures, and usually no more than that; programs of later cases are not known yet.
    left = {work: 0.0 for work in WORK}
    for job in jobs:
      left[job.case.work] += sum(size >= job.images for size in batches_of(job.case))
    seconds = sum(
      number * (sum(took[work]) / len(took[work]) if took[work] else GUESS[work]) for work, number in left.items()
    )
    job = jobs[0]
    count += 1
    say(f'program {count} of about {count - 1 + sum(left.values()):.0f}, {clock(seconds)} left: {describe(job)} ...')
    started = time.monotonic()
    try:
      workload(job.case, store).measure(job.settings, job.images, 1)
    except jax.errors.JaxRuntimeError as error:  # the others need not wait for a compiler's failure
      failed[job] = str(error).split('\n')[0][:200]
    took[job.case.work].append(time.monotonic() - started)
  return failed


def batches_of(case: Case) -> tuple[int, ...]:
  """Batches to compile; activations need most of the memory of the last two. Compilers for GPUs take any size."""
  if case.work == 'inference':
    return (1, 8, 32)
  if case.target.chip.silicon:
    return (1, 64, 128) if case.size == 512 else (1, 16, 32)
  return (1, 16, 32) if case.size == 512 else (1, 4, 8)


def describe(job: Job) -> str:
  case = job.case
  return (
    f'{NAMES[case.model]} {case.size}, {case.work}, {job.settings}, {job.images} images, for {case.target.compiler}'
  )


def clock(seconds: float) -> str:
  minutes = round(seconds / 60)
  return f'{minutes // 60}:{minutes % 60:02d} h'


# --------------------------------------------------------------------------------------------------------------- page
INTRODUCTION = """# Which accelerator?

What one device can do with L-DIT, by compiling the real programs without it; see [Will it fit?](compile_report.md) for how memory and
time are computed. **Times are roofline estimates**: upper bounds on speed; real runs are slower. Compiled with jax {version} by

    JAX_PLATFORMS=cpu python benchmarks/fit_table.py

`fits` is the largest number of images per device in one pass. Training uses the least recomputation with which the recipe's batch
of 64 fits, accumulated if needed; on TPUs, if that takes micro-batches of fewer than 8 images, the next setting if it is faster. The
parameters are f32, the computation bf16 where the chip has it. `hours` are those of the recipe's updates on RefCOCO (25 epochs for
ViT-L and ViT-H, 40 for ViT-B) on this one device, without evaluation. Inference is the forward pass of a batch of up to 8 images
with a sentence each.
On GPUs nine tenths of the memory are used (`XLA_PYTHON_CLIENT_MEM_FRACTION=0.9`); scratch memory of cuDNN and what XLA's autotuning
chooses are unknown without the card, so leave a margin.

Above each table is the command that trains. `python -m ditsam_jax.compile_report --fit=DEVICE` with its `--config` options
searches more settings and compiles the ones that it proposes. One cell alone, training or inference, is computed by

    JAX_PLATFORMS=cpu python benchmarks/fit_table.py --models vit_b --sizes 512 --devices l4:1 --work inference
"""  # noqa: E501


def write_page(page: Path, known: Store, current: Store) -> None:
  """Writes tables of all that is known; `known` has figures of earlier source code too, `current` has not."""
  parts = [INTRODUCTION.format(version=jax.__version__)]
  unknown = outdated = 0
  for model in NAMES:
    for size in SIZES:
      rows = []
      for device in DEVICES:
        cases = [Case(model, size, work, device) for work in WORK]
        row = [cells(case, known) for case in cases]
        unknown += row.count(None)
        outdated += sum(
          found is not None and cells(case, current) is None for case, found in zip(cases, row, strict=True)
        )
        if any(row):
          chips = parse_topology(device).count
          name = device if chips == 1 else f'{device} ({chips} chips)'
          infers, trains = row[0] or ['...', ''], row[1] or ['...', '', '', '']
          rows.append('| ' + ' | '.join([name, *infers, *trains]) + ' |')
      if rows:
        base = shlex.join(
          [f'--config={CONFIGS[model]}', *(f'--config.{o}' for o in Case(model, size, '', '').overrides)]
        )
        parts.append(
          f'## {NAMES[model]} at {size}\n\n    python -m ditsam_jax.train {base} --workdir=runs/one FLAGS\n\n'
          '| device | inference: fits | images/s | training: fits | FLAGS | images/s | hours |\n'
          '| --- | --- | --- | --- | --- | --- | --- |\n' + '\n'.join(rows) + '\n'
        )
  total = len(WORK) * len(NAMES) * len(SIZES) * len(DEVICES)
  if unknown:
    parts.append(f'{unknown} of {total} cells (...) are not computed yet: rerun the command to continue.\n')
  if outdated:
    parts.append(f'{outdated} cells are of an earlier version of the source code: rerun the command to confirm them.\n')
  write_text(page, '\n'.join(parts))


def cells(case: Case, store: Store) -> list[str] | None:
  """What the table says of a case: the largest batch, for training the flags, images/s, for training the hours.

  None if it is not known yet.
  """
  try:
    choice, steps = solved(case, store)
  except Missing:
    return None
  trains = case.work == 'training'
  if choice is None:
    return ['no', '', '', ''] if trains else ['no', '']
  rate = choice.images_per_second * case.target.count
  if not trains:
    return [_count(choice.largest), _rate(rate)]
  config = config_of(case.model, case.size)
  flags = ' '.join(f'`{change}`' for change in fit.command_changes(choice, config, []))
  hours = steps * config.data.batch_size / rate / 3600
  return [_count(choice.largest), flags, _rate(rate), f'{hours:.2g}' if hours < 100 else f'{hours:.0f}']


def _rate(images_per_second: float) -> str:
  return f'{images_per_second:,.0f}' if images_per_second >= 100 else f'{images_per_second:.3g}'


def _count(images: int) -> str:
  """Images, rounded down to two digits: an extrapolation from small batches is no better."""
  step = 10 ** max(0, len(str(images)) - 2)
  return f'over {images:,}' if images == planner.MOST else f'{images // step * step:,}'


if __name__ == '__main__':
  sys.exit(main())
