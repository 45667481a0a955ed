"""Where the sentence enters, with error bars: python benchmarks/claim.py --output=runs/claim

Trains on shapes, from the same SAM and for the same number of updates: L-DIT, E-DIT, and the text baseline with 2, 4
and 6 decoder layers, each with SAM's image encoder frozen and trained. Three seeds each, at a learning rate tuned for
each in the same way: three rates for a quarter of the budget, and of those within a point of mIoU of the best, the one
that is best after the whole budget; both on the validation split. L-DIT and the baseline also run for four times the
budget, with one seed.

A job is a run of ditsam_jax.train; rerun the command to resume, use --jobs=N to run N more and stop, or --only=frozen
for a part. The tables go to claim.md, numbers to claim.json, curves to claim.png (needs the extra 'figures').

Minimal pairs are two expressions about one scene that differ in one word, 'left' against 'right': the table says how
often the mask fits its own target better than the other one's. Guessing is right 50 % of the time.
"""

import argparse
import functools
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import numpy as np

from ditsam_jax.data.datasets import scenes_config
from ditsam_jax.data.shapes import EXPRESSION_KINDS, PAIR_KINDS, minimal_pairs
from ditsam_jax.data.shapes.builder import described_scene
from ditsam_jax.inference.segmenter import Segmenter
from ditsam_jax.storage.files import write_json, write_text

MODELS = {  # config -> name in the tables
  'ldit': 'L-DIT',
  'edit': 'E-DIT',
  'sam_text': 'text baseline, 2 decoder layers',
  'sam_text_add_2': 'text baseline, 4 decoder layers',
  'sam_text_add_4': 'text baseline, 6 decoder layers',
}
RATES = (1.5e-3, 3e-3, 6e-3)
CLOSE = 1.0  # mIoU after a quarter of the budget; rates that differ by less are compared after the whole budget
SEEDS = (0, 1, 2)
LONGER = ('ldit', 'sam_text')
LONG = 4  # times the budget
PARTS = ('frozen', 'trained')
RESULT = 'pairs.json'  # a job's last file


class Pair(NamedTuple):
  """What is compared."""

  config: str
  frozen: bool

  @property
  def part(self) -> str:
    """One of PARTS."""
    return PARTS[not self.frozen]


PAIRS = [Pair(config, frozen) for config in MODELS for frozen in (True, False)]


class Job(NamedTuple):
  """One training run."""

  stage: str  # 'tune', 'main' or 'long'
  pair: Pair
  seed: int
  rate: float

  @property
  def name(self) -> str:
    return f'{self.stage}-{self.pair.config}-{self.pair.part}-seed{self.seed}-{self.rate:g}'


def planned(output: Path, pairs: list[Pair]) -> Iterator[Job]:
  """All jobs in their order. Rates are chosen on the way, so each job must be done before the next is asked for."""
  for pair in pairs:
    for rate in RATES:
      yield Job('tune', pair, 100, rate)
  for seed in SEEDS:
    for pair in pairs:
      for rate in candidates(output, pair) if seed == SEEDS[0] else [chosen_rate(output, pair)]:
        yield Job('main', pair, seed, rate)
  for config in LONGER:
    if (pair := Pair(config, False)) in pairs:
      yield Job('long', pair, SEEDS[0], chosen_rate(output, pair))


def candidates(output: Path, pair: Pair) -> list[float]:
  """The rates that are among the best after a quarter of the budget."""
  scores = {rate: metrics(output / Job('tune', pair, 100, rate).name)['release']['mIoU'] for rate in RATES}
  return [rate for rate in RATES if scores[rate] >= max(scores.values()) - CLOSE]


def chosen_rate(output: Path, pair: Pair) -> float:
  """The best of the candidates on the validation split after the whole budget.

  Raises:
    FileNotFoundError: one of them is not finished.
  """

  def score(rate):
    folder = output / Job('main', pair, SEEDS[0], rate).name
    (folder / RESULT).stat()  # written last
    return validation(folder)[-1][1]

  return max(candidates(output, pair), key=score)


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--output', type=lambda path: Path(path).absolute(), default='runs/claim')
  parser.add_argument('--steps', type=int, default=1000, help='the budget of a run')
  parser.add_argument('--jobs', type=int, help='run this many more and stop')
  parser.add_argument('--only', choices=PARTS, help='run this part alone; the tables show all that is finished')
  parser.add_argument('--scenes', type=int, default=500, help='of the test split, for minimal pairs')
  parser.add_argument('train_flags', nargs='*', help='for every run, after --: -- --config.data.batch_size=8')
  options = parser.parse_args()
  pairs = [pair for pair in PAIRS if options.only in (None, pair.part)]
  waiting = (job for job in planned(options.output, pairs) if not is_done(job, options))
  for job in itertools.islice(waiting, options.jobs):
    print(job.name, flush=True)
    run(job, options)
    report(options)
  report(options)
  return 0


def steps_of(job: Job, options: argparse.Namespace) -> int:
  return {'tune': options.steps // 4, 'main': options.steps, 'long': LONG * options.steps}[job.stage]


def is_done(job: Job, options: argparse.Namespace) -> bool:
  file = options.output / job.name / RESULT
  if not file.is_file():
    return False
  steps, expected = json.loads(file.read_text())['steps'], steps_of(job, options)
  if steps != expected:
    sys.exit(f'error: {file} is of {steps} updates, not {expected}; choose another --output, or the same --steps')
  return True


def run(job: Job, options: argparse.Namespace) -> None:
  """Trains, resuming if there is something to resume; then evaluates minimal pairs."""
  folder = options.output / job.name
  steps = steps_of(job, options)
  command = [
    *(sys.executable, '-m', 'ditsam_jax.train', f'--config={job.pair.config}:shapes', f'--workdir={folder}'),
    *(f'--config.seed={job.seed}', f'--config.total_steps={steps}', f'--config.optimizer.learning_rate={job.rate:g}'),
    *(['--config.freeze=image_encoder'] if job.pair.frozen else []),
    *(['--config.final_split=val'] if job.stage == 'tune' else [f'--config.eval_every={options.steps // 4}']),
    *options.train_flags,
  ]
  subprocess.run(command, check=True, cwd=ROOT)
  scores = {} if job.stage == 'tune' else pairs_right(folder / 'model', options.scenes)
  write_json(folder / RESULT, {'learning_rate': job.rate, 'steps': steps, 'right': scores})


def metrics(folder: Path) -> dict[str, Any]:
  return json.loads((folder / 'metrics.json').read_text())


def validation(folder: Path) -> list[tuple[int, float]]:
  """(step, mIoU on the validation split in percent) during training."""
  log = [json.loads(line) for line in (folder / 'train_log.jsonl').read_text().splitlines()]
  return [(entry['step'], entry['val/mIoU']) for entry in log if 'val/mIoU' in entry]


def pairs_right(model: Path, count: int) -> dict[str, float]:
  """Percentage of sentences in minimal pairs whose mask fits their own target better, by kind."""
  asked, images = pairs_of_scenes(count)
  found = Segmenter(model).many(zip(images, (text for _, text, _, _ in asked)))
  right: dict[str, list[bool]] = {kind: [] for kind in PAIR_KINDS}
  for (kind, _, own, other), result in zip(asked, found):
    right[kind].append(overlap(result.mask, own) > overlap(result.mask, other))
  return {kind: 100 * float(np.mean(values)) for kind, values in right.items() if values}


@functools.cache
def pairs_of_scenes(count: int) -> tuple[list[tuple[str, str, np.ndarray, np.ndarray]], list[np.ndarray]]:
  """(kind, sentence, mask of its target, mask of the other sentence's target) and the image, for each sentence."""
  config, rng = scenes_config({}), np.random.default_rng(0)
  asked, images = [], []
  for index in range(count):
    scene, _ = described_scene(config, 'test', index)
    for pair in minimal_pairs(scene.shapes, config.image_size, rng):
      for side in (0, 1):
        own, other = (scene.masks[pair.targets[i]] for i in (side, 1 - side))
        asked.append((pair.kind, pair.texts[side], own, other))
        images.append(scene.image)
  return asked, images


def overlap(mask: np.ndarray, target: np.ndarray) -> float:
  return np.count_nonzero(mask & target) / max(np.count_nonzero(mask | target), 1)


# ------------------------------------------------------------------------------------------------------------- report


def report(options: argparse.Namespace) -> None:
  """Writes tables and curves of the finished jobs."""
  jobs = [
    Job(stage, pair, seed, rate)
    for stage, seeds in (('tune', (100,)), ('main', SEEDS), ('long', SEEDS[:1]))
    for pair in PAIRS
    for seed in seeds
    for rate in RATES
  ]
  done = {job: result(options.output / job.name) for job in jobs if is_done(job, options)}
  rows, pairs, longer, used = [], [], [], []
  for pair in PAIRS:
    try:
      rate = chosen_rate(options.output, pair)
    except FileNotFoundError:
      continue
    name = f'{MODELS[pair.config]}, {"SAM frozen" if pair.frozen else "all trained"}'
    mine = [job for job in done if (job.stage, job.pair, job.rate) == ('main', pair, rate)]
    used += mine
    runs = [done[job] for job in mine]
    kinds = [spread([found['kinds'][kind] for found in runs]) for kind in EXPRESSION_KINDS]
    seconds = statistics.median(found['seconds_a_step'] for found in runs)
    cells = [len(runs), f'{rate:g}', f'{runs[0]["parameters"] / 1e6:.2f} M', f'{seconds:.2f}']
    rows.append([name, *cells, spread([found['mIoU'] for found in runs]), *kinds])
    pairs.append([name, *(spread([found['right'][kind] for found in runs]) for kind in PAIR_KINDS)])
  for job, found in done.items():
    if job.stage == 'long':
      used.append(job)
      kinds = [f'{found["kinds"][kind]:.1f}' for kind in EXPRESSION_KINDS]
      longer.append([MODELS[job.pair.config], found['steps'], f'{found["mIoU"]:.1f}', *kinds])
  kinds = [*EXPRESSION_KINDS]
  text = '\n\n'.join(
    [
      f'{len(done)} runs; mIoU on the test split in percent, mean and standard deviation over seeds',
      table(['', 'seeds', 'learning rate', 'parameters trained', 'seconds a step', 'mIoU', *kinds], rows),
      'Minimal pairs: how often the right one of two shapes is found, in percent',
      table(['', *PAIR_KINDS], pairs),
      f'One run at {LONG} times the budget',
      table(['', 'steps', 'mIoU', *kinds], longer),
    ]
  )
  options.output.mkdir(parents=True, exist_ok=True)
  write_text(options.output / 'claim.md', text + '\n')
  write_json(options.output / 'claim.json', {job.name: found for job, found in done.items()})
  curves(options.output, used)


def result(folder: Path) -> dict[str, Any]:
  scores, extra = metrics(folder), json.loads((folder / RESULT).read_text())
  kinds = {kind: scores['kinds'][kind]['release']['mIoU'] for kind in scores['kinds']}
  return {
    'mIoU': scores['release']['mIoU'],
    'kinds': kinds,
    'parameters': scores['parameters_trained'],
    'seconds_a_step': scores['seconds']['training'] / extra['steps'],  # with evaluations; too small for a resumed run
    **extra,
  }


def spread(values: list[float]) -> str:
  deviation = f' ± {statistics.stdev(values):.1f}' if len(values) > 1 else ''
  return f'{statistics.mean(values):.1f}{deviation}'


def table(head: list[str], rows: list[list[Any]]) -> str:
  lines = [head, ['---'] * len(head), *rows]
  return '\n'.join('| ' + ' | '.join(map(str, line)) + ' |' for line in lines)


def curves(output: Path, jobs: list[Job]) -> None:
  """Draws mIoU on the validation split during training, a panel for each of PARTS that has jobs."""
  try:
    from matplotlib import pyplot
  except ImportError:
    return
  panels = [frozen for frozen in (True, False) if any(job.pair.frozen == frozen for job in jobs)]
  if not panels:
    return
  titles = {True: "SAM's image encoder frozen", False: 'everything trained (dashed: four times the budget)'}
  figure, axes = pyplot.subplots(1, len(panels), figsize=(6 * len(panels), 4.5), sharey=True, squeeze=False)
  for frozen, place in zip(panels, axes[0]):
    labels = set()
    for job in jobs:
      if job.pair.frozen != frozen:
        continue
      name = MODELS[job.pair.config]
      style = {'color': f'C{list(MODELS).index(job.pair.config)}', 'linestyle': '--' if job.stage == 'long' else '-'}
      points = validation(output / job.name)
      place.plot(*zip(*points), label=None if name in labels else name, marker='.', **style)
      labels.add(name)
    place.set(title=titles[frozen], xlabel='updates')
    place.grid(alpha=0.3)
  axes[0, 0].legend(fontsize='small')  # colours are the same in both
  axes[0, 0].set_ylabel('mIoU on the validation split, %')
  figure.tight_layout()
  figure.savefig(output / '.claim.png', dpi=150, format='png')
  (output / '.claim.png').replace(output / 'claim.png')
  pyplot.close(figure)


if __name__ == '__main__':
  sys.exit(main())
