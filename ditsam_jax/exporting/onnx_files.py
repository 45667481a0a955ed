"""ONNX: text encoder, image encoder and decoder as files for ONNX Runtime, compared with JAX.

The programs are traced from the PyTorch peer, because no converter from JAX to ONNX can be installed with the JAX
versions that this library supports; see docs/export.md.
"""

import functools
import sys
from pathlib import Path

import onnx_ir as ir

from ditsam_jax.exporting import interface, onnx_programs, reference
from ditsam_jax.exporting.folders import check_target, written_folder
from ditsam_jax.exporting.onnx_quantised import quantise
from ditsam_jax.exporting.onnx_runtime import Session, differences
from ditsam_jax.exporting.report import checked, sizes, worst
from ditsam_jax.exporting.request import Request
from ditsam_jax.exporting.source import read
from ditsam_jax.storage.description import warn_if_fresh
from ditsam_jax.storage.files import write_json
from ditsam_jax.terminal import progress

PARTS = (
  interface.FILE,
  interface.VOCABULARY,
  *(f'{name}{ending}' for name in interface.PROGRAMS for ending in ('.onnx', '.onnx.data')),
)


def export(request: Request) -> str:
  """Writes the files and compares them with JAX; for arguments, result and errors see `formats.export`."""
  is_export = functools.partial(interface.is_export, 'onnx')
  check_target(request.output, is_export)
  source = read(request)
  warn_if_fresh(request.checkpoint)
  programs = onnx_programs.programs(onnx_programs.peer_of(source), all_masks=request.masks == 'all')
  with (
    written_folder(request.output, is_export, PARTS) as folder,
    progress(len(programs) + 1, 'exporting', 'program') as bar,
  ):
    files = [folder / program.file for program in programs]
    for program, file in zip(programs, files):
      onnx_programs.save(onnx_programs.trace(program), file)
      bar.update()
    cases = reference.cases(source)
    stages = reference.computed(source, cases)

    def compared() -> dict[str, float]:
      session = Session(folder, source.config)
      return worst(differences(session(case), expected, case) for case, expected in zip(cases, stages))

    largest = compared()
    report = [checked(largest, 'ONNX Runtime')]
    if request.quantise:
      for file in files:
        quantise(file)
    if request.dtype == 'float16':
      for file in files:
        model = ir.load(file)
        onnx_programs.halve(model)
        onnx_programs.save(model, file)
    if request.quantise:
      largest = compared()
      report.append(checked(largest, f'ONNX Runtime as {request.quantise}', tolerance=sys.float_info.max))
    elif request.dtype == 'float16':
      largest = compared()
      report = [checked(largest, 'ONNX Runtime')]
    if source.pieces is not None:
      (folder / interface.VOCABULARY).write_text('\n'.join(source.pieces) + '\n', encoding='utf-8')
    described = interface.interface(
      source,
      'onnx',
      [program.description() for program in programs],
      opset=onnx_programs.OPSET,
      weights={'dtype': request.dtype, 'quantised': request.quantise},
      largest_differences_from_jax=largest,
    )
    write_json(folder / interface.FILE, described)
    bar.update()
  return '\n'.join([*report, *sizes(Path(request.output))])
