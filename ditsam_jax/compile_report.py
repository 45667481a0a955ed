"""Compiles a training step for a TPU slice, without a TPU, and reports its requirements: python -m ditsam_jax.compile_report --topology=v5e:4x4 ...

  python -m ditsam_jax.compile_report --config=ldit --topology=v5e:4x4 --config.data.batch_size=128
  python -m ditsam_jax.compile_report --config=ldit --topology=v5e:4x4 --compare=mesh.fsdp=16,mesh.data=1 \\
    --compare=mesh.fsdp=4,mesh.data=4 --compare=topology=v5e:8x8,data.batch_size=512

Compiles the real train step with the TPU compiler (`pip install -e '.[tpu]'`). Memory, FLOPs and collectives are those of
the compiled program; times are estimates from the chip's published peaks.
"""

import argparse
import re
import sys
import time
from pathlib import Path

import jax
from ml_collections import ConfigDict

from ditsam_jax import command_line
from ditsam_jax.analysis import chips
from ditsam_jax.analysis.chart import bar_chart
from ditsam_jax.analysis.report import Report, Step, analyse, fully_sharded_bytes
from ditsam_jax.analysis.table import table
from ditsam_jax.config import changes, checks, files, lengths
from ditsam_jax.config.run import RunConfig
from ditsam_jax.models.flops import training_flops
from ditsam_jax.options import Parser
from ditsam_jax.parallel.sharding import make_mesh
from ditsam_jax.storage.files import write_json
from ditsam_jax.storage.image_files import write_png
from ditsam_jax.storage.paths import local_path
from ditsam_jax.terminal import say
from ditsam_jax.training.program import Program, build


def main(arguments: list[str] | None = None) -> int:
  """Runs the command."""
  arguments = sys.argv[1:] if arguments is None else arguments
  parser = Parser(
    prog='python -m ditsam_jax.compile_report',
    description=(__doc__ or '').split(':')[0],
    epilog='--config.any.field=value changes a field of the config',
  )
  parser.add_argument('--config', required=True, metavar='NAME[:DATA]', help=files.HELP)
  parser.add_argument('--topology', required=True, metavar='CHIP:SLICE', help='v5e:4x4, v5p:2x2x2, v6e:8x8, ...')
  parser.add_argument(
    '--compare',
    action='append',
    default=[],
    metavar='FIELD=VALUE,...',
    help='add a column with these fields changed (topology may be one of them); repeatable',
  )
  parser.add_argument('--json', type=local_path, metavar='FILE', help='also write the report to this JSON file')
  parser.add_argument(
    '--picture', type=local_path, metavar='FILE.png', help='also draw a bar chart of memory and time to this PNG file'
  )
  overrides, rest = changes.split_arguments(arguments)
  options = parser.parse_args(rest)
  cases = {text or options.topology: _case(options, overrides, text) for text in options.compare or ['']}

  jax.config.update('jax_platforms', 'cpu')  # the compiler needs no TPU; do not look for one
  reports = {}
  for name, (topology, config) in cases.items():
    say(f'compiling {len(reports) + 1} of {len(cases)}: {name} ...')
    reports[name] = report(config, topology)
    say(f'  {reports[name].compile_seconds:.0f} s')
  config_name = options.config + ''.join(f' --config.{override}' for override in overrides)
  print(table(config_name, reports))
  for file, write in ((options.json, _write_json), (options.picture, _write_picture)):
    if file:
      file.absolute().parent.mkdir(parents=True, exist_ok=True)
      write(file, config_name, reports)
      print('written:', file)
  return 0


def report(config: ConfigDict, topology: str) -> Report:
  """Compiles the train step of a config for a slice.

  Raises:
    UserError: the compiler is not installed, the topology is unknown, or the mesh does not divide the batch or the heads.
  """
  chip, count = chips.parse_topology(topology)
  checked = checks.check(config)
  mesh = make_mesh(checked.mesh, chips.topology_devices(topology))
  run = lengths.resolve(config, lambda: lengths.samples_without_data(checked))
  program = build(run, run.model, mesh)
  return analyse(program.lower(), chip, count, _step(run, program), time.monotonic)


def _case(options: argparse.Namespace, overrides: list[str], text: str) -> tuple[str, ConfigDict]:
  """Returns the checked topology and config of one column."""
  given = (change.partition('=') for change in re.split(r',(?=[a-z_][\w.]*=)', text) if change)
  different: dict[str, str] = {name: value for name, _, value in given}
  topology = different.pop('topology', options.topology)
  chips.parse_topology(topology)
  config = files.load(options.config, overrides + [f'{name}={value}' for name, value in different.items()])
  return topology, config


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
  command_line.run(main)
