"""Finds settings with which a training step fits a chip: the largest batch, and the fastest way to the wanted batch.

With many images per device, memory grows linearly with them; with few, other parts of a step (the optimiser's update)
may need more than their activations. So two compilations predict the largest batch, and others confirm or correct it.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

from ditsam_jax.analysis.figures import Figures
from ditsam_jax.analysis.targets import Target

MOST = 4096  # images per device
# Fractions of a TPU's memory that its compiler leaves to programs; the compiler has the last word.
_TPU_SHARE = 0.975
_ROUNDING = 1e-9
_TOLERANCE = 0.01  # of memory, between prediction and compiled program; of time, between equally fast ones


@dataclasses.dataclass(frozen=True)
class Settings:
  """Fields of a config that trade memory for time."""

  dtype: str
  remat: str
  freeze: str

  def __str__(self) -> str:
    return ', '.join(f'{name} {value}' for name, value in dataclasses.asdict(self).items() if value)


Measure = Callable[[Settings, int, int], Figures]  # settings, images per device and micro-batch, micro-batches


@dataclasses.dataclass(frozen=True)
class Line:
  """Memory and time of a step as linear functions of the images per device."""

  bytes: tuple[float, float]  # at no image, and per image
  seconds: tuple[float, float]

  @classmethod
  def through(cls, points: dict[int, Figures], chip: str) -> 'Line | None':
    """The line through the two largest points with figures, or None if there are fewer than two."""
    known = sorted(size for size, found in points.items() if found.bytes is not None)[-2:]
    if len(known) < 2:
      return None
    low, high = (points[size] for size in known)
    assert low.bytes is not None and high.bytes is not None
    timed = sorted(size for size, found in points.items() if found.seconds is not None)[-2:]
    times = [found.seconds[chip] for found in (points[size] for size in timed) if found.seconds is not None]
    seconds = (math.inf, 0.0)
    if len(times) == 2:
      seconds = _line(timed[0], times[0], timed[1], times[1])
    elif times:
      seconds = (0.0, times[0] / timed[0])
    return cls(_line(known[0], low.bytes, known[1], high.bytes), seconds)

  def step_seconds(self, images: int) -> float:
    """Estimated time of a step, or of a micro-batch of an accumulating step."""
    return self.seconds[0] + self.seconds[1] * images

  def largest(self, room: float) -> int:
    """The most images that need at most `room` bytes."""
    if self.bytes[1] <= 0:
      return MOST if self.bytes[0] <= room else 0
    return max(0, min(MOST, math.floor((room - self.bytes[0]) / self.bytes[1])))


@dataclasses.dataclass(frozen=True)
class Choice:
  """Settings that fit: the largest batch, and how to reach the wanted one."""

  settings: Settings
  largest: int  # images per device without accumulation
  accumulate: int  # for the wanted batch; 0 if it cannot be reached
  images_per_second: float  # estimated, of one device at the wanted batch; of the largest where accumulate is 0


def room_of(target: Target) -> float:
  """Bytes of a chip that programs can use."""
  return target.chip.usable_bytes * (1 if target.chip.silicon else _TPU_SHARE)


def points(
  measure: Measure, target: Target, settings: Settings, sizes: Iterable[int] = (2, 4)
) -> tuple[int, dict[int, Figures]]:
  """Finds the largest number of images per device; returns it, and all figures by images per device.

  Args:
    measure: compiles a step.
    target: the chips.
    settings: of the step.
    sizes: the first to try, ascending.
  """
  tried: dict[int, Figures] = {}
  linear = bisected = True  # the last prediction was right; the last size but one halved the range

  for size in sizes:
    # The compiler for GPUs gives figures of what does not fit, too.
    if target.chip.silicon or size < _bounds(tried, target)[1]:
      tried[size] = measure(settings, size, 1)
  while True:
    low, high = _bounds(tried, target)
    line = Line.through(tried, target.chip.name)
    expected = line.largest(room_of(target)) if line else 0
    if high - low <= max(1, _TOLERANCE * low) or line and linear and expected == low:
      return low, tried
    if line is None and low:  # the compiler of TPUs may refuse a program without a figure
      guess = min(2 * low, high - 1)
    elif low < expected < high and (linear or bisected):
      guess, bisected = expected, False
    else:  # memory need not grow linearly: the compiler may change a program's form at some size
      guess, bisected = (low + high) // 2, True
    tried[guess] = found = measure(settings, guess, 1)
    if line is not None and found.bytes is not None:
      linear = abs(line.bytes[0] + line.bytes[1] * guess - found.bytes) < _TOLERANCE * found.bytes


def predicted(
  measure: Measure, target: Target, settings: Settings, sizes: Sequence[int]
) -> tuple[int, dict[int, Figures]]:
  """Like `points`, without confirmation: the line through the two largest sizes decides.

  Args:
    measure: compiles a step.
    target: the chips.
    settings: of the step.
    sizes: one image, and two more, ascending; doubled until memory has begun to grow at the last but one, or halved
      until it fits a TPU.
  """
  tried: dict[int, Figures] = {}

  def grown(size: int) -> bool:
    first, found = tried[sizes[0]].bytes, tried[size].bytes
    return first is not None and found is not None and found > (1 + _TOLERANCE) * first

  following = list(sizes)
  while following:
    size = following.pop(0)
    tried[size] = measure(settings, size, 1)
    low, high = _bounds(tried, target)
    if low == 0:  # if one image does not fit, no more do
      return 0, tried
    if not target.chip.silicon and high <= MOST:  # what is too large for a TPU has no figures of time
      following = [] if grown(low) or high == low + 1 else [(low + high) // 2]
    elif not following and not grown(sorted(tried)[-2]) and 2 * size <= MOST:
      following = [2 * size]
  low, high = _bounds(tried, target)
  line = Line.through({size: found for size, found in tried.items() if grown(size)}, target.chip.name)
  if line is None:
    return low, tried
  return max(low, min(line.largest(room_of(target)), high - 1)), tried


def choose(
  measure: Measure,
  target: Target,
  candidates: Iterable[Settings],
  wanted: int,
  gradient_bytes: Callable[[Settings], float],
  sizes: Sequence[int] = (),
) -> list[Choice]:
  """Returns what fits for each of the candidates, in their order.

  Stops at settings that reach the wanted batch without accumulation: what recomputes more is slower.

  Args:
    measure: compiles a step.
    target: the chips.
    candidates: settings to try, those that recompute least first.
    wanted: images per device of an update.
    gradient_bytes: what accumulation adds to a step's memory, the sums of gradients.
    sizes: predict from programs of these sizes, see `predicted`; empty to confirm predictions by compiling.
  """
  found = []
  for settings in candidates:
    if sizes:
      largest, tried = predicted(measure, target, settings, sizes)
    else:
      first = (2, wanted) if wanted > 2 and target.chip.silicon else (2, 4)
      largest, tried = points(measure, target, settings, first)
    # Programs that do not fit may have another form than those that do, and so another memory and time per image.
    fitting = {size: figures for size, figures in tried.items() if figures.fits(target)}
    line = Line.through(fitting if not sizes and len(fitting) > 1 else tried, target.chip.name)
    seconds = tried[largest].seconds if largest in tried else None
    if line is None and seconds and not sizes:  # a TPU's compiler refused all others without a figure: ask it below
      line = Line((0.0, 0.0), (0.0, seconds[target.chip.name] / largest))
    if largest == 0 or line is None:
      found.append(Choice(settings, largest, 0, 0.0))
      continue
    parts = _parts(wanted, largest, line, room_of(target) - gradient_bytes(settings))
    if not sizes and parts > 1:
      parts = _confirmed(measure, target, settings, wanted, parts)
    images = wanted // parts if parts else largest
    known = tried[images].seconds if not sizes and parts <= 1 and images in tried else None
    taken = known[target.chip.name] if known else line.step_seconds(images)
    choice = Choice(settings, largest, parts, images / taken)
    found.append(
      _quicker(measure, target, choice, wanted) if not sizes and parts and not target.chip.silicon else choice
    )
    if parts == 1:
      break
  return found


def _bounds(tried: dict[int, Figures], target: Target) -> tuple[int, int]:
  """The largest size that fits, and the smallest that does not."""
  fits = [size for size, found in tried.items() if found.fits(target)]
  return max(fits, default=0), min(tried.keys() - fits, default=MOST + 1)


def _quicker(measure: Measure, target: Target, choice: Choice, wanted: int) -> Choice:
  """Doubles the micro-batches of a choice until the estimate gets slower.

  A TPU keeps what fits in the memory on the chip, so that a large batch in one pass may move more bytes per image.
  """

  def seconds(parts: int) -> float:
    found = measure(choice.settings, wanted // parts, parts)
    return found.seconds[target.chip.name] if found.seconds and found.fits(target) else math.inf

  tried = {choice.accumulate: seconds(choice.accumulate)}
  while wanted % (parts := 2 * max(tried)) == 0:
    tried[parts] = seconds(parts)
    if tried[parts] > (1 + _TOLERANCE) * min(tried.values()):
      break
  best = min(tried, key=lambda parts: tried[parts])
  rate = wanted / tried[best]
  return dataclasses.replace(choice, accumulate=best, images_per_second=rate) if rate else choice


def fastest(choices: Iterable[Choice]) -> Choice | None:
  """The choice of highest estimated throughput that reaches the wanted batch; the first of equal ones."""
  reach = [choice for choice in choices if choice.accumulate]
  best = max((choice.images_per_second for choice in reach), default=0.0)
  return next((choice for choice in reach if choice.images_per_second >= (1 - _ROUNDING) * best), None)


def _parts(wanted: int, largest: int, line: Line, room: float) -> int:
  """The fewest micro-batches in which the wanted batch fits; 0 if none do."""
  if wanted <= largest:
    return 1
  return next(
    (n for n in range(2, wanted + 1) if wanted % n == 0 and wanted // n <= min(largest, line.largest(room))), 0
  )


def _confirmed(measure: Measure, target: Target, settings: Settings, wanted: int, parts: int) -> int:
  """The fewest micro-batches, from `parts` up, with which the compiled step fits; 0 if none do."""
  for number in range(parts, wanted + 1):
    if wanted % number == 0 and measure(settings, wanted // number, number).fits(target):
      return number
  return 0


def _line(x: float, y: float, x2: float, y2: float) -> tuple[float, float]:
  slope = (y2 - y) / (x2 - x)
  return y - slope * x, slope
