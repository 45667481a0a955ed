"""The search for settings, with programs whose memory and time are known formulas."""

import math
import shlex
from types import SimpleNamespace

import pytest

from ditsam_jax.analysis import figures, fit
from ditsam_jax.analysis.figures import Figures, Store
from ditsam_jax.analysis.planner import Choice, Settings, choose, fastest, points, predicted, room_of
from ditsam_jax.analysis.targets import parse_topology
from ditsam_jax.config import files
from ditsam_jax.errors import UserError

GPU, TPU = parse_topology('l4:1'), parse_topology('v5e:1x1')
NONE, BLOCK = Settings('bfloat16', 'none', ''), Settings('bfloat16', 'block', '')
GIB = 2**30
PER_IMAGE = {'none': 1.0, 'block': 0.125}  # GiB
SECONDS = {'none': 0.010, 'block': 0.014}


class Machine:
  """Compiles programs that need `state` GiB, and for each image what PER_IMAGE says."""

  def __init__(self, target, state, *, extra=0.0, curve=0.0, floor=0.0):
    self.target, self.state, self.extra, self.curve, self.floor, self.compiled = target, state, extra, curve, floor, []

  def __call__(self, settings, images, parts):
    self.compiled.append((settings.remat, images, parts))
    needed = self.state + PER_IMAGE[settings.remat] * images + self.curve * images**2 + self.extra * (parts > 1)
    needed = int(max(needed, self.floor) * GIB)
    if self.target.chip.silicon is None and needed > self.target.chip.hbm_bytes:
      return Figures(None, None, 1.0)  # refused, without a figure
    return Figures(needed, {self.target.chip.name: 0.001 + SECONDS[settings.remat] * images}, 1.0)


@pytest.mark.parametrize('state', [0, 3, 11, 19, 30])
@pytest.mark.parametrize('sizes', [(2, 4), (2, 64)])
def test_two_programs_predict_the_largest_batch_and_a_third_confirms_it(state, sizes):
  machine = Machine(GPU, state)
  largest, tried = points(machine, GPU, NONE, sizes)
  assert largest == max(0, math.floor(room_of(GPU) / GIB - state))
  assert len(machine.compiled) <= 3


@pytest.mark.parametrize('target', [GPU, TPU])
@pytest.mark.parametrize(
  'remat, state, floor', [(NONE, 3, 0), (NONE, 3, 9), (BLOCK, 5, 7), (NONE, 11, 13), (BLOCK, 30, 0)]
)
def test_a_prediction_from_large_batches_needs_no_confirmation(target, remat, state, floor):
  """With few images, memory is `floor`, of another part of the step."""
  machine = Machine(target, state, floor=floor)
  sizes = (1, 64, 128) if target is GPU else (1, 4, 8)
  room = room_of(target) / GIB
  expected = math.floor((room - state) / PER_IMAGE[remat.remat]) if room > max(state, floor) else 0
  largest, _ = predicted(machine, target, remat, sizes)
  if target is TPU and floor == 9:  # refused at 16 images without a figure; at 4 images, memory had not grown
    assert largest == 8 < expected
  else:
    assert largest == expected
  assert len(machine.compiled) <= (6 if largest else 1)


def test_a_tpu_that_refuses_the_second_size_is_asked_for_smaller_ones():
  """One image needs the memory of another part of the step, and 16 do not fit: without figures of 8, none of 12."""
  machine = Machine(TPU, 3, floor=13)
  largest, tried = predicted(machine, TPU, NONE, (1, 16, 32))
  assert largest == math.floor(room_of(TPU) / GIB - 3) == 12 and sorted(tried) == [1, 8, 12, 16]
  assert len(machine.compiled) == 4


def test_a_prediction_that_was_wrong_is_corrected():
  """Memory grows faster than linearly: the line through small sizes promises too much."""
  machine = Machine(GPU, 2, curve=0.03)
  largest, tried = points(machine, GPU, NONE)
  room = room_of(GPU) / GIB
  assert largest == max(n for n in range(100) if 2 + n + 0.03 * n**2 <= room)
  assert len(machine.compiled) <= 6


@pytest.mark.parametrize('step', [65, 700, 3000, 3771, 4000])
@pytest.mark.parametrize('above', [1.001, 10])
def test_memory_that_jumps_at_some_size_costs_few_compilations(step, above):
  """The program takes another form from `step` images on, and then does not fit."""

  compiled = []

  def measure(settings, images, parts):
    compiled.append(images)
    room = room_of(GPU)
    needed = room * (0.2 + 0.1 * images / 4096) if images < step else room * (above + images / 4096)
    return Figures(int(needed), {'l4': 0.001 * images if images < step else 0.005 * (images - step + 1)}, 1.0)

  largest, tried = points(measure, GPU, NONE, (2, 64))
  assert largest in tried and step - 1 - 0.01 * step <= largest < step
  assert len(compiled) <= 16
  for wanted in (32, 8192):  # at once, and accumulated: the time per image is that of programs that fit
    [choice] = choose(measure, GPU, [NONE], wanted, lambda settings: 0.0)
    assert 0 < wanted // choice.accumulate < step and choice.images_per_second == pytest.approx(1000)


@pytest.mark.parametrize('state', [2, 13.5, 14.5, 17])
def test_a_tpu_compiler_that_refuses_without_figures_is_asked_again(state):
  machine = Machine(TPU, state)
  largest, _ = points(machine, TPU, NONE)
  assert largest == max(0, math.floor(room_of(TPU) / GIB - state))


def test_accumulation_is_preferred_to_recomputation_if_it_is_faster():
  room = room_of(GPU) / GIB  # 20.1
  machine = Machine(GPU, 10, extra=1.0)
  choices = choose(machine, GPU, [NONE, BLOCK], 64, lambda settings: 1.0 * GIB)
  assert [choice.accumulate for choice in choices] == [8, 1]  # 64 / 8 images and the sums of gradients fit
  assert 10 + 1 + 64 / choices[0].accumulate <= room < 10 + 1 + 64 / (choices[0].accumulate / 2)
  best = fastest(choices)
  assert best.settings == NONE  # 10 ms per image, 1 ms per micro-batch, against 14 ms
  assert best.images_per_second == pytest.approx(8 / 0.081)
  assert ('none', 8, 8) in machine.compiled  # confirmed as it would run


def test_a_tpu_gets_smaller_micro_batches_if_they_are_faster():
  """Up to 8 images stay on the chip; a micro-batch costs 1 ms."""

  def measure(settings, images, parts):
    per_image = 0.01 if images <= 8 else 0.02
    return Figures(int((1 + 0.1 * images) * GIB), {'v5e': parts * (0.001 + per_image * images)}, 1.0)

  (choice,) = choose(measure, TPU, [NONE, BLOCK], 32, lambda settings: 0.0)
  assert choice.accumulate == 4 and choice.images_per_second == pytest.approx(32 / (4 * 0.081))
  (choice,) = choose(measure, TPU, [NONE, BLOCK], 8, lambda settings: 0.0)
  assert choice.accumulate == 1


@pytest.mark.parametrize('state, largest', [(13.5, 2), (14.5, 1)])
def test_a_tpu_that_fits_a_single_size_accumulates(state, largest):
  machine = Machine(TPU, state, extra=0.1)
  [choice] = choose(machine, TPU, [NONE], 8, lambda settings: 0.1 * GIB)
  assert choice.largest == largest and choice.images_per_second > 0
  assert 0 < 8 // max(choice.accumulate, 1) <= largest


def test_settings_that_reach_the_batch_at_once_end_the_search():
  machine = Machine(GPU, 1)
  choices = choose(machine, GPU, [NONE, BLOCK], 8, lambda settings: 0.0)
  assert [(choice.settings, choice.accumulate, choice.largest) for choice in choices] == [(NONE, 1, 19)]


def test_nothing_fits():
  choices = choose(Machine(GPU, 30), GPU, [NONE, BLOCK], 8, lambda settings: 0.0)
  assert fastest(choices) is None and [choice.largest for choice in choices] == [0, 0]


def program(text):
  """A lowered program."""
  return SimpleNamespace(as_text=lambda: text)


def test_figures_are_compiled_once_and_kept_in_a_file(tmp_path):
  file = tmp_path / 'new' / 'figures.json'
  made = []

  def make(lowered):
    made.append(lowered)
    return Figures(5, {'l4': 0.5}, 60.0)

  for _ in range(2):  # the second time, from the file
    assert Store(file).find({'model': 'a'}, GPU, lambda: program('a'), make) == Figures(5, {'l4': 0.5}, 60.0)
  assert len(made) == 1
  store = Store(file)
  assert store.get({'model': 'b'}, GPU) is None and store.get({'model': 'a'}, TPU) is None


def test_figures_of_another_analysis_or_without_the_chip_are_made_again(tmp_path, monkeypatch):
  """Cards of one architecture share a program; figures of an earlier version of the analysis are for display only."""
  file, made = tmp_path / 'figures.json', []
  other = parse_topology('rtx4090:1')

  def find(target, seconds):
    def make(lowered):
      made.append(target.chip.name)
      return Figures(5, seconds, 60.0)

    return Store(file).find({}, target, lambda: program('a'), make)

  find(GPU, {'l4': 0.5})
  assert Store(file).get({}, other) is None  # the card was added later
  find(other, {'l4': 0.5, 'rtx4090': 0.25})
  find(GPU, {})
  assert made == ['l4', 'rtx4090'] and Store(file).get({}, GPU) is not None
  monkeypatch.setattr(figures, 'METHOD', figures.METHOD + 1)
  assert Store(file).get({}, GPU) is None and Store(file, outdated=True).get({}, GPU) is not None
  find(GPU, {'l4': 0.75})
  assert made[2:] == ['l4'] and Store(file).get({}, GPU).seconds == {'l4': 0.75}


@pytest.mark.parametrize('text, compiled', [('a', 1), ('b', 2)])
def test_after_a_change_of_the_source_code_only_programs_that_differ_are_compiled(
  tmp_path, monkeypatch, text, compiled
):
  file, made = tmp_path / 'figures.json', []

  def find(lowered):
    def make(lowered):
      made.append(lowered)
      return Figures(len(made), {'l4': 0.5}, 60.0)

    return Store(file).find({'model': 'a'}, GPU, lambda: lowered, make)

  find(program('a'))
  monkeypatch.setattr(figures, '_source_hash', lambda: 'other code')
  assert Store(file).get({'model': 'a'}, GPU) is None
  assert Store(file, outdated=True).get({'model': 'a'}, GPU) == Figures(1, {'l4': 0.5}, 60.0)
  for lowered in (program(text), None):  # the second time, the sources are known
    assert find(lowered).bytes == compiled
  assert len(made) == compiled


@pytest.mark.parametrize(
  'content',
  [
    '[]',
    '{"a": 1}',
    '{"a": {"bytes": 5, "compile_seconds": 60.0}}',
    '{"a": {"bytes": 5, "seconds": {"l4": 0.5}}}',
    '{"a": {"bytes": "5", "seconds": {"l4": 0.5}, "compile_seconds": 60.0}}',
    '{"a": {"bytes": 5, "seconds": 0.5, "compile_seconds": 60.0}}',
    '{"a": {"bytes": 5, "seconds": {"l4": null}, "compile_seconds": 60.0}}',
  ],
)
def test_other_files_are_refused(tmp_path, content):
  (tmp_path / 'other.json').write_text(content)
  with pytest.raises(UserError, match='no figures'):
    Store(tmp_path / 'other.json')


def test_processes_that_share_the_file_keep_each_others_figures(tmp_path):
  file = tmp_path / 'figures.json'
  stores = [Store(file), Store(file)]
  made = [Figures(5, {'l4': 0.5}, 60.0), Figures(None, None, 3.0)]
  for name, store, one in zip('ab', stores, made):
    store.find({'model': name}, GPU, lambda: program('x'), lambda lowered, one=one: one)
  assert [Store(file).get({'model': name}, GPU) for name in 'ab'] == made


def test_figures_that_another_process_has_renewed_are_kept(tmp_path, monkeypatch):
  file = tmp_path / 'figures.json'
  made = [Figures(number, {'l4': 0.5}, 60.0) for number in range(3)]
  Store(file).find({'model': 'a'}, GPU, lambda: program('old'), lambda lowered: made[0])
  before = Store(file)
  monkeypatch.setattr(figures, '_source_hash', lambda: 'other code')
  Store(file).find({'model': 'a'}, GPU, lambda: program('new'), lambda lowered: made[1])
  before.find({'model': 'b'}, GPU, lambda: program('b'), lambda lowered: made[2])
  assert [Store(file).get({'model': name}, GPU) for name in 'ab'] == made[1:]


def described(found, name, overrides):
  return fit.described(found, name, files.load(name, overrides), overrides)


def test_the_command_and_the_hours():
  choice = Choice(Settings('bfloat16', 'none', ''), 12, 8, 100.0)
  found = fit.Fit(GPU, 64, 1, 9000, (choice,), choice)
  text = described(found, 'ldit', ['seed=3', 'dtype=float32'])
  assert (
    'XLA_PYTHON_CLIENT_MEM_FRACTION=0.9 python -m ditsam_jax.train --config=ldit --config.seed=3 '
    '--config.dtype=bfloat16 --config.remat=none --config.accumulate=8 --workdir=runs/fit'
  ) in text
  assert found.hours == pytest.approx(9000 * 64 / 100 / 3600) and '1.6 hours' in text


OWN = """
from ditsam_jax.config import recipe
def get_config():
  config = recipe('shapes')
  config.freeze, config.accumulate, config.dtype, config.remat = 'mask_decoder', 4, 'bfloat16', 'none'
  return config
"""


@pytest.mark.parametrize(
  'overrides, freeze, accumulate, expected',
  [
    ([], 'mask_decoder', 4, []),  # as in the file
    ([], 'mask_decoder', 1, ['accumulate=1']),
    (['freeze='], '', 4, ['freeze=']),
    (['freeze=mask_decoder', 'seed=3'], 'mask_decoder', 4, ['seed=3', 'freeze=mask_decoder']),
    ([], 'mask_decoder,text_encoder', 4, ['freeze=mask_decoder,text_encoder']),
  ],
)
def test_the_command_trains_what_was_planned_whatever_the_config_says(
  tmp_path, overrides, freeze, accumulate, expected
):
  (tmp_path / 'own.py').write_text(OWN)
  choice = Choice(Settings('bfloat16', 'none', freeze), 64, accumulate, 10.0)
  found = fit.command_changes(choice, files.load(str(tmp_path / 'own.py'), overrides), overrides)
  assert found == [f'--config.{change}' for change in expected]
  changes = [change.removeprefix('--config.') for change in found]
  trained = files.load(str(tmp_path / 'own.py'), changes)
  assert (trained.freeze, trained.accumulate) == (freeze, accumulate)


@pytest.mark.parametrize(
  'topology, command',
  [
    ('v5e:2x4', 'python -m ditsam_jax.train --config'),
    ('v5e:4x4', 'python -m ditsam_jax.train --hosts=pod --config'),
    (
      'h100:8x4',
      'XLA_PYTHON_CLIENT_MEM_FRACTION=0.9 srun --nodes=4 --ntasks-per-node=8 --gpus-per-node=8 '
      'python -m ditsam_jax.train --config',
    ),
  ],
)
def test_the_command_starts_all_hosts(topology, command):
  target = parse_topology(topology)
  choice = Choice(Settings('bfloat16', 'none', ''), 12, 8, 100.0)
  text = described(fit.Fit(target, 64, 1, 9000, (choice,), choice), 'ldit', ["data.data_dir=it's mine"])
  [line] = [line for line in text.splitlines() if 'ditsam_jax.train' in line]
  assert line.startswith(command)
  assert "--config.data.data_dir=it's mine" in shlex.split(line)
  assert ('all hosts share' in text) == (target.hosts > 1)


@pytest.mark.parametrize(
  'topology, more',
  [
    ('l4:1', 'l4:2'),
    ('h100:8', 'h100:8x2'),
    ('h100:4x2', 'h100:4x4'),
    ('h100:8x4', None),  # `fsdp` stops at 16 devices, so the memory of more does not add up
    ('v5e:2x4', 'v5e:4x4'),
    ('v5e:16x16', None),
  ],
)
def test_if_nothing_fits_more_devices_are_named_as_long_as_they_help(topology, more):
  found = fit.Fit(parse_topology(topology), 64, 1, 9000, (Choice(NONE, 0, 0, 0.0),), None)
  text = described(found, 'ldit', [])
  assert text.endswith(
    f'Nothing fits. Use more devices (their memory adds up: --fit={more}) or a smaller model.'
    if more
    else 'Nothing fits. Use a smaller model.'
  )
  assert 'ditsam_jax.train' not in text
