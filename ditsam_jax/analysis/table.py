"""Formats reports as a text table, one column per report."""

from collections.abc import Callable

from ditsam_jax.analysis.collectives import KINDS
from ditsam_jax.analysis.operations import Operation, moved
from ditsam_jax.analysis.report import Report
from ditsam_jax.terminal import aligned

GIB = 2**30


def table(heading: str, reports: dict[str, Report]) -> str:
  """Formats the table, omitting rows that are empty for all reports."""
  headings = [name.split(',') for name in reports]  # one field per line
  rows = [
    ['', *(heading[i] if i < len(heading) else '' for heading in headings)] for i in range(max(map(len, headings)))
  ]
  for label, cell in _ROWS:
    cells = [cell(report) for report in reports.values()]
    if any(cells):
      rows.append([label, *cells])
  lines = [f'{heading}: one training step, per chip', *aligned(rows)]
  lines += [f'{name}: does not fit. {report.too_large}' for name, report in reports.items() if report.too_large]
  lines += [
    f'{name}: loops of unknown length, counted once: {", ".join(report.endless)}'
    for name, report in reports.items()
    if report.endless
  ]
  for name, report in reports.items():
    lines += _heaviest(name if len(reports) > 1 else '', report)
  gpus = any(report.chip.silicon for report in reports.values())
  return '\n'.join(line.rstrip() for line in lines + ['', _NOTE] + ([_GPU_NOTE] if gpus else []))


def _heaviest(name: str, report: Report) -> list[str]:
  """The operations that move most bytes: how many, the share of all bytes, what they make, and where they come from."""
  rows = [
    (
      _amount(moved(group)),
      f'{100 * moved(group) / report.bytes:.0f} %',
      f'{sum(o.times for o in group)} x',
      max(group, key=lambda o: o.bytes).result,
      _kind_of(group[0]),
      group[0].source or '-',
    )
    for group in report.heaviest
  ]
  if not rows:
    return []
  heading = (
    'most bytes' + (f', {name}' if name else '') + ' (moved, share, executions, largest result, operation, lines):'
  )
  return ['', heading, *aligned(rows, left=len(rows[0]))]


def _kind_of(operation: Operation) -> str:
  """The last part of the JAX operation with the pass that it belongs to; for copies, the instruction's name."""
  parts = operation.op_name.split('/')
  again = any('rematted_computation' in part for part in parts)
  phase = 'recomputed ' if again else 'backward ' if any('transpose(' in part for part in parts) else ''
  kernel = parts[-2] if parts[-1] == 'pallas_call' and len(parts) > 1 else parts[-1]
  own = operation.kind
  return f'{phase}{kernel}' + (f' ({own})' if own.startswith(('copy', 'slice', 'reshape')) and own != kernel else '')


_NOTE = (
  'Memory, FLOPs and collectives are those of the compiled program. '
  'Times are roofline estimates from published peaks;\n'
  'nothing was run. Real steps take longer.'
)


_GPU_NOTE = (
  'GPUs: JAX reserves 75 % of the memory by default; XLA_PYTHON_CLIENT_MEM_FRACTION=0.9 makes nine tenths usable. '
  'Unknown\n'
  "without the card: scratch memory of cuDNN's convolutions and attention, "
  "and the products that XLA's autotuning chooses."
)


def _fitting(cell: Callable[[Report], str]) -> Callable[[Report], str]:
  """A cell of reports that have a program: the compiler of TPUs gives none that does not fit, the one of GPUs does."""
  return lambda report: cell(report) if report.memory.total else ''


def _kind(kind: str) -> Callable[[Report], str]:
  def cell(report: Report) -> str:
    times, sent = report.by_kind()[kind]
    return f'{_amount(sent)} in {times}' if times else ''

  return cell


def _against_ideal(report: Report) -> str:
  ideal = report.step.ideal_sent
  return f'{_amount(report.sent)}, {report.sent / ideal:.2f} x' if ideal else _amount(report.sent)


def _capacity(report: Report) -> str:
  """The chip's memory, GiB: of a GPU what is usable of it."""
  return f'{report.chip.usable_bytes / GIB:.3g}'


def _amount(count: float) -> str:
  """Formats bytes as GB or MB."""
  return f'{count / 1e9:.2f} GB' if count >= 1e9 else f'{count / 1e6:.1f} MB'


def _share(report: Report) -> str:
  return ', '.join(f'{name} {100 * part / report.time.step:.0f} %' for name, part in report.time.parts)


_ROWS = [
  ('chips', lambda r: f'{r.chips} {r.chip.name}'),
  ('hosts', lambda r: f'{r.chips // r.target.per_host}' if r.target.per_host else ''),
  ('batch', lambda r: f'{r.step.batch_size}, {r.step.batch_size / r.chips:g} per chip'),
  ('compile time', lambda r: f'{r.compile_seconds:.0f} s'),
  ('memory: state and batch', _fitting(lambda r: f'{r.memory.arguments / GIB:.2f} GiB')),
  ('memory: temporaries', _fitting(lambda r: f'{r.memory.temporaries / GIB:.2f} GiB')),
  ('memory: program, outputs', _fitting(lambda r: f'{(r.memory.program + r.memory.outputs) / GIB:.2f} GiB')),
  (
    'memory: total',
    lambda r: 'does not fit' if r.too_large else f'{r.memory.total / GIB:.2f} of {_capacity(r)} GiB',
  ),
  ('FLOPs', _fitting(lambda r: f'{r.flops / 1e12:.3f} T')),
  ('model FLOPs', _fitting(lambda r: f'{r.step.model_flops / r.chips / 1e12:.3f} T')),
  ('bytes accessed', _fitting(lambda r: _amount(r.bytes))),
  *((f'sent: {kind}', _fitting(_kind(kind))) for kind in KINDS),
  ('sent: between hosts', _fitting(lambda r: _amount(r.sent_between_hosts) if r.sent_between_hosts else '')),
  ('sent: total, relative to the FSDP minimum', _fitting(_against_ideal)),
  ('estimate: step time', _fitting(lambda r: f'{1e3 * r.time.step:.1f} ms')),
  ('estimate: samples/s, all chips', _fitting(lambda r: f'{r.samples_per_second:.0f}')),
  ('estimate: MFU', _fitting(lambda r: f'{100 * r.mfu:.0f} %')),
  ('estimate: bound by', _fitting(_share)),
]
