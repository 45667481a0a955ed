"""Compiles a training step for TPUs or GPUs without having them, and reports its requirements:

  python -m ditsam_jax.compile_report --config=ldit --topology=h100:8 --config.dtype=bfloat16
  python -m ditsam_jax.compile_report --config=ldit --topology=v5e:4x4 --compare=mesh.fsdp=16,mesh.data=1 \\
    --compare=mesh.fsdp=4,mesh.data=4 --compare=topology=h100:8x2,data.batch_size=512
  python -m ditsam_jax.compile_report --config=ldit --fit=rtx4090

Compiles the real train step with the TPU compiler (extras `train` and `tpu`) or the CUDA one (`train` and `cuda12` or
`cuda13`).
Memory, FLOPs and collectives are those of the compiled program; times are estimates from published peaks. `--fit` finds
the largest batch per device and the fastest settings for the config's batch, and prints the command to run.
"""

import argparse
import os
import re
import sys
import time
from pathlib import Path

from ml_collections import ConfigDict

from ditsam_jax import command_line
from ditsam_jax.analysis import fit, targets
from ditsam_jax.analysis.chart import bar_chart
from ditsam_jax.analysis.figures import Store
from ditsam_jax.analysis.report import Report, Step, analyse, fully_sharded_bytes
from ditsam_jax.analysis.table import table
from ditsam_jax.analysis.targets import Target
from ditsam_jax.analysis.workloads import program
from ditsam_jax.config import changes, files
from ditsam_jax.config.run import RunConfig
from ditsam_jax.errors import UserError
from ditsam_jax.fields import did_you_mean
from ditsam_jax.models.flops import training_flops
from ditsam_jax.options import Parser
from ditsam_jax.storage.files import write_json
from ditsam_jax.storage.image_files import write_png
from ditsam_jax.storage.paths import cache_folder, local_path
from ditsam_jax.terminal import printable, say
from ditsam_jax.training.program import Program


def main(arguments: list[str] | None = None) -> int:
  """Runs the command."""
  arguments = sys.argv[1:] if arguments is None else arguments
  parser = Parser(
    prog='python -m ditsam_jax.compile_report',
    description=(__doc__ or '').split(':')[0],
    epilog='--config.any.field=value changes a field of the config',
  )
  parser.add_argument('--config', required=True, metavar='NAME[:DATA]', help=files.HELP)
  chips = 'v5e:4x4, v5p:2x2x2 (TPU slices), h100:8 (GPUs of one host), a100-80:8x4 (of four hosts), ...'
  what = parser.add_mutually_exclusive_group(required=True)
  what.add_argument('--topology', metavar='CHIP:SHAPE', help=f'report one step for {chips}')
  what.add_argument('--fit', metavar='CHIP:SHAPE', help='find the largest batch and the fastest settings that fit')
  parser.add_argument(
    '--compare',
    action='append',
    default=[],
    metavar='FIELD=VALUE,...',
    help='report the config with these fields changed (topology may be one of them) instead; repeat for more columns; '
    '--compare= is the config as given',
  )
  parser.add_argument('--json', type=local_path, metavar='FILE', help='also write the report to this JSON file')
  parser.add_argument(
    '--picture', type=local_path, metavar='FILE.png', help='also draw a bar chart of memory and time to this PNG file'
  )
  parser.add_argument(
    '--cache',
    type=local_path,
    metavar='FILE',
    help='with --fit: keep figures of compiled programs in this JSON file (default: ~/.cache/ditsam_jax/figures.json)',
  )
  overrides, rest = changes.split_arguments(arguments)
  options = parser.parse_args(rest)
  if options.fit is not None and (options.compare or options.picture):
    raise UserError('--fit finds settings by itself; leave --compare and --picture out, or give --topology')
  if options.cache and options.fit is None:
    raise UserError('--cache belongs to --fit; leave it out, or give --fit in place of --topology')
  if options.fit is not None:
    return _fit(options, overrides)
  if twice := [text for text in set(options.compare) if options.compare.count(text) > 1]:
    raise UserError(f'--compare={twice[0]} is given twice; leave one out')
  cases = {text or options.topology: _case(options, overrides, text) for text in options.compare or ['']}
  _check_outputs(options)

  reports = {}
  for name, (target, config) in cases.items():
    say(f'compiling {len(reports) + 1} of {len(cases)}: {name} ...')
    reports[name] = report(config, target)
    say(f'  {reports[name].compile_seconds:.0f} s')
  config_name = options.config + ''.join(f' --config.{override}' for override in overrides)
  print(table(config_name, reports))
  for file, write in ((options.json, _write_json), (options.picture, _write_picture)):
    if file:
      write(file, config_name, reports)
      print('written:', file)
  return 0


def report(config: ConfigDict, target: Target) -> Report:
  """Compiles the train step of a config for a target.

  Raises:
    UserError: the compiler is not installed, or the mesh does not divide the batch or the heads.
  """
  with targets.lowering(target):
    run, built = program(config, target)
    return analyse(built.lower(), target, _step(run, built), time.monotonic)


def _check_outputs(options: argparse.Namespace) -> None:
  """Creates the folders of the files. Raises UserError if one cannot be written, before minutes of compiling."""
  if options.picture and options.picture.suffix.lower() != '.png':
    raise UserError(f'--picture={printable(options.picture)}: pictures are PNG files; name it FILE.png')
  if options.json and options.picture and options.json.resolve() == options.picture.resolve():
    raise UserError(f'--json and --picture are both {printable(options.json)}; name two files')
  for option, file in (('--json', options.json), ('--picture', options.picture), ('--cache', options.cache)):
    if not file:
      continue
    try:
      file.absolute().parent.mkdir(parents=True, exist_ok=True)
      if file.exists() and not file.is_file():
        raise UserError(f'{option}={printable(file)}: a folder or a device; name a file')
      if not os.access(file.absolute().parent, os.W_OK):
        raise UserError(f'{option}={printable(file)}: its folder cannot be written to; name another file')
    except (OSError, ValueError) as error:  # ValueError: an invalid file name
      reason = getattr(error, 'strerror', None) or error
      raise UserError(f'{option}={printable(file)}: cannot be written ({reason}); name another file') from error


def _fit(options: argparse.Namespace, overrides: list[str]) -> int:
  target = targets.parse_topology(options.fit)
  config = files.load(options.config, overrides)
  options.cache = options.cache or cache_folder() / 'figures.json'
  _check_outputs(options)
  found = fit.training(config, overrides, target, Store(options.cache))
  print(fit.described(found, options.config, config, overrides))
  if options.json:
    write_json(options.json, fit.to_json(found))
    print('written:', options.json)
  return 0


def _case(options: argparse.Namespace, overrides: list[str], text: str) -> tuple[Target, ConfigDict]:
  """Returns the target and the config of one column."""
  given = [change.partition('=') for change in re.split(r',(?=[a-z_][\w.]*=)', text) if change]
  for name, equals, _ in given:
    if not equals:
      raise UserError(
        f'--compare={text}: expected FIELD=VALUE,..., such as mesh.fsdp=4,mesh.data=4 or topology=h100:8; '
        '--compare= is the config as given'
      )
    if name != 'topology' and (hint := did_you_mean(name, ['topology'])):
      raise UserError(f'--compare={text}: {name} is unknown; {hint.strip()}')
  different: dict[str, str] = {name: value for name, _, value in given}
  target = targets.parse_topology(different.pop('topology', options.topology))
  return target, files.load(options.config, overrides + [f'{name}={value}' for name, value in different.items()])


def _step(config: RunConfig, program: Program) -> Step:
  batch_size, mesh = config.data.batch_size, program.mesh
  prompts = {}
  if config.task == 'prompts':
    prompts = {
      'prompts': config.rounds * config.data.objects_per_image,
      'prompt_tokens': program.batch['points'].shape[2],
    }
  elif config.task == 'interactive':  # counted as if each sample had a sentence
    prompts = {'prompts': config.rounds}
  sizes = [sum(array.size for array in weights.values()) for weights in (program.state.params, program.state.frozen)]
  ideal = fully_sharded_bytes(*sizes, data=mesh.shape['data'], fsdp=mesh.shape['fsdp'])
  return Step(
    batch_size, batch_size * training_flops(config.model, **prompts), ideal if mesh.shape['tensor'] == 1 else None
  )


def _write_json(file: Path, config_name: str, reports: dict[str, Report]) -> None:
  write_json(file, {'config': config_name, 'reports': {name: report.to_json() for name, report in reports.items()}})


def _write_picture(file: Path, config_name: str, reports: dict[str, Report]) -> None:
  write_png(file, bar_chart(config_name, reports))


if __name__ == '__main__':
  command_line.run(main, on_cpu=True)
