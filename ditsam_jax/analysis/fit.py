"""`compile_report --fit`: which settings of a config fit a target, and the command to train with the fastest."""

import dataclasses
import shlex
from typing import Any

from ml_collections import ConfigDict

from ditsam_jax.analysis import planner
from ditsam_jax.analysis.figures import Figures, Store
from ditsam_jax.analysis.planner import Choice, Settings
from ditsam_jax.analysis.targets import Target
from ditsam_jax.analysis.workloads import Training
from ditsam_jax.config import checks, lengths
from ditsam_jax.config.freeze import freeze_patterns
from ditsam_jax.errors import UserError
from ditsam_jax.models.execution import AUTO, automatic
from ditsam_jax.parallel.sharding import MOST_FSDP
from ditsam_jax.terminal import aligned, say

_HOST = 8  # GPUs that a host usually has at most
# Parts that may stay as they are, beside those that the config freezes, if nothing else fits.
_FROZEN = (('text_encoder',), ('image_encoder', 'text_encoder'))


@dataclasses.dataclass(frozen=True)
class Fit:
  """What fits a target."""

  target: Target
  batch_size: int  # wanted, over all devices
  devices: int  # that share the batch
  steps: int  # updates of the whole training
  choices: tuple[Choice, ...]
  best: Choice | None
  froze_more: bool = False  # than the config does, because nothing else fits

  @property
  def hours(self) -> float | None:
    """Estimated time of all updates; None if nothing fits."""
    if self.best is None:
      return None
    return self.steps * self.batch_size / (self.best.images_per_second * self.devices) / 3600


def training(config: ConfigDict, overrides: list[str], target: Target, store: Store) -> Fit:
  """Finds settings for the train step of a config; compiles, with a line on stderr for each program.

  Types, rematerialisation and frozen parts that are among `overrides` stay as they are. Without, the type is bfloat16
  where the chip has units for it, and more parts are frozen only if nothing else fits.

  Raises:
    UserError: the compiler is missing, the devices do not divide the batch, or `accumulate` is among the overrides.
  """
  given = {override.partition('=')[0] for override in overrides}
  if 'accumulate' in given:
    raise UserError('--fit chooses the accumulation; leave --config.accumulate out')
  run = lengths.resolve(config, lambda: lengths.samples_without_data(checks.check(config)))
  work = Training(config, target, store, say)
  if run.data.batch_size % work.shares:
    raise UserError(
      f'config.data.batch_size is {run.data.batch_size}; expected a multiple of {work.shares}, the devices of '
      f'{target.topology} that share it'
    )
  dtype = run.dtype if 'dtype' in given or not target.chip.bf16 else 'bfloat16'
  remats = automatic(target.platform) if run.remat == AUTO or 'remat' not in given else (run.remat,)
  unit = work.unit
  wanted = run.data.batch_size // work.shares // unit

  def measure(settings: Settings, units: int, parts: int) -> Figures:
    return work.measure(settings, units * unit, parts)

  def choose(candidates: list[Settings]) -> list[Choice]:
    found = planner.choose(measure, target, candidates, wanted, work.gradient_bytes)
    return [
      dataclasses.replace(choice, largest=choice.largest * unit, images_per_second=choice.images_per_second * unit)
      for choice in found
    ]

  choices = choose([Settings(dtype, remat, run.freeze) for remat in remats])
  froze_more = planner.fastest(choices) is None and 'freeze' not in given
  if froze_more:
    own = list(freeze_patterns(run.freeze))
    absent = ['text_encoder'] if run.model.text_encoder is None else []
    for parts in _FROZEN:
      more = [part for part in parts if part not in own + absent]
      settings = Settings(dtype, remats[-1], ','.join(own + more))
      if not more or not work.gradient_bytes(settings):  # the same again, or nothing left to train
        continue
      choices += choose([settings])
      if planner.fastest(choices):
        break
  best = planner.fastest(choices)
  return Fit(target, run.data.batch_size, work.shares, run.total_steps, tuple(choices), best, froze_more)


def described(found: Fit, name: str, config: ConfigDict, overrides: list[str]) -> str:
  """Formats what fits as a table, with the command. `config` is the one of this name with the overrides."""
  target, lines = found.target, []
  gib = target.chip.usable_bytes / 2**30
  lines.append(f'{name} on {target.topology}: {found.batch_size} samples per update, {gib:.3g} GiB usable per device')
  rows = [('dtype', 'remat', 'frozen', 'largest batch per device', 'accumulate', 'estimated images/s')]
  for choice in found.choices:
    settings = choice.settings
    rate = f'{choice.images_per_second * found.devices:.4g}' if choice.images_per_second else ''
    parts = str(choice.accumulate) if choice.accumulate else 'does not fit'
    rows.append((settings.dtype, settings.remat, settings.freeze or '-', str(choice.largest), parts, rate))
  lines += aligned(rows, left=len(rows[0]))
  if found.best is None:
    more = _larger(target)
    devices = f'more devices (their memory adds up: --fit={more}) or ' if more else ''
    lines += ['', f'Nothing fits. Use {devices}a smaller model.']
    return '\n'.join(lines)
  changes = command_changes(found.best, config, overrides)
  lines += ['', _launcher(target) + shlex.join([f'--config={name}', *changes, '--workdir=runs/fit'])]
  if target.hosts > 1:
    lines += ['', 'The workdir must be in a folder that all hosts share, or in a bucket.']
  lines += [
    '',
    f'{found.steps:,} updates take about {found.hours:.3g} hours, by roofline estimates; real steps take longer.',
  ]
  if found.froze_more:
    lines.append(f'Training more does not fit; this leaves {found.best.settings.freeze} as it is.')
  return '\n'.join(lines)


def command_changes(choice: Choice, config: ConfigDict, overrides: list[str]) -> list[str]:
  """The changes of a config to train with a choice, as options. `config` has the overrides."""
  chosen: dict[str, Any] = dataclasses.asdict(choice.settings) | {'accumulate': choice.accumulate}
  given = {override.partition('=')[0] for override in overrides}
  kept = [override for override in overrides if override.partition('=')[0] not in chosen]
  found = [f'{name}={value}' for name, value in chosen.items() if name in given or config[name] != value]
  return [f'--config.{change}' for change in kept + found]


def to_json(found: Fit) -> dict[str, Any]:
  """What fits, as JSON-serialisable containers. The largest batch and the images per second are per device."""

  def per_device(choice: Choice) -> dict[str, Any]:
    values = dataclasses.asdict(choice)
    rate = values.pop('images_per_second')
    return values | {'images_per_second_per_device': rate}

  return {
    'topology': found.target.topology,
    'batch_size': found.batch_size,
    'devices': found.devices,
    'updates': found.steps,
    'hours': found.hours,
    'choices': [per_device(choice) for choice in found.choices],
    'best': found.best and per_device(found.best),
  }


def _launcher(target: Target) -> str:
  """The command that starts training on a target's hosts, up to its options."""
  command = 'python -m ditsam_jax.train '
  if target.per_host is None:
    return command + ('--hosts=pod ' if target.hosts > 1 else '')
  nodes = f'--nodes={target.hosts} --ntasks-per-node={target.per_host} --gpus-per-node={target.per_host}'
  return 'XLA_PYTHON_CLIENT_MEM_FRACTION=0.9 ' + (f'srun {nodes} ' if target.hosts > 1 else '') + command


def _larger(target: Target) -> str:
  """A topology with more devices that share the weights by default; '' if there is none."""
  if target.count >= MOST_FSDP:
    return ''
  if target.per_host is None:
    slices = target.chip.slices
    following = slices[slices.index(target.topology.partition(':')[2]) + 1 :]
    return f'{target.chip.name}:{following[0]}' if following else ''
  if target.hosts == 1 and 2 * target.count <= _HOST:
    return f'{target.chip.name}:{2 * target.count}'
  return f'{target.chip.name}:{target.per_host}x{2 * target.hosts}'
