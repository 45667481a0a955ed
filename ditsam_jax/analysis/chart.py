"""Bar charts of reports: memory on top, estimated step time below."""

from PIL import Image, ImageDraw, ImageFont

from ditsam_jax.analysis.report import Report

_WIDTH, _LEFT, _ROW, _BAR, _MARGIN = 1200, 330, 34, 22, 24
_INK, _PALE = '#1f2933', '#9aa5b1'
_COLOURS = ('#2f6f9f', '#e0a030', '#7a9a4a')


def bar_chart(heading: str, reports: dict[str, Report]) -> Image.Image:
  """Draws stacked bars: memory by content, with the chip's capacity, and the estimated step time by bottleneck."""
  gib = 2**30
  memory = {
    name: []
    if not r.memory.total
    else [r.memory.arguments / gib, r.memory.temporaries / gib, (r.memory.program + r.memory.outputs) / gib]
    for name, r in reports.items()
  }
  times = {
    name: [] if not r.memory.total else [1e3 * part for part in (r.time.compute, r.time.hbm, r.time.links)]
    for name, r in reports.items()
  }
  capacities = {name: r.chip.usable_bytes / gib for name, r in reports.items()}
  height = 2 * (len(reports) * _ROW + 80) + 3 * _MARGIN
  image = Image.new('RGB', (_WIDTH, height), 'white')
  draw = ImageDraw.Draw(image)
  draw.text((_MARGIN, _MARGIN), heading, _INK, ImageFont.load_default(size=18))
  y = _bars(
    draw, 2 * _MARGIN + 12, 'memory per chip, GiB', ('state and batch', 'temporaries', 'program'), memory, capacities
  )
  _bars(draw, y + _MARGIN, 'estimated step, ms (roofline)', ('compute', 'memory', 'links'), times, {})
  return image


def _bars(
  draw: ImageDraw.ImageDraw,
  y: int,
  title: str,
  parts: tuple[str, ...],
  rows: dict[str, list[float]],
  marks: dict[str, float],
) -> int:
  """Draws stacked bars from `y` down, with a line at each row's mark; returns the y below the last bar."""
  font, small = ImageFont.load_default(size=16), ImageFont.load_default(size=14)
  draw.text((_MARGIN, y), title, _INK, font)
  x = _LEFT
  for part, colour in zip(parts, _COLOURS):
    draw.rectangle((x, y + 3, x + 13, y + 16), colour)
    draw.text((x + 20, y), part, _INK, small)
    x += 40 + int(small.getlength(part))
  y += 30
  most = max([sum(row) for row in rows.values()] + list(marks.values()) + [1e-9])
  scale = (_WIDTH - _LEFT - 130) / most
  for name, row in rows.items():
    label = name if font.getlength(name) < _LEFT - 2 * _MARGIN else '...' + name[-36:]
    draw.text((_MARGIN, y + 2), label, _INK, small)
    left = float(_LEFT)
    for value, colour in zip(row, _COLOURS):
      draw.rectangle((left, y, left + value * scale, y + _BAR), colour)
      left += value * scale
    draw.text((left + 8, y + 2), f'{sum(row):.3g}' if row else 'does not fit', _INK, small)
    if name in marks:
      x = _LEFT + marks[name] * scale
      draw.line((x, y - 4, x, y + _BAR + 4), _PALE, 2)
    y += _ROW
  return y
