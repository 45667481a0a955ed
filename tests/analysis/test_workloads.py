"""The programs that the planner compiles, compiled for a CPU that stands in for the chip."""

import json

import jax
import pytest

from ditsam_jax import compile_report
from ditsam_jax.analysis import fit, targets, workloads
from ditsam_jax.analysis.figures import Figures, Store
from ditsam_jax.analysis.planner import Settings
from ditsam_jax.analysis.workloads import Inference, Training
from ditsam_jax.config import checks, files
from tests.small_models import small_config

TARGET = targets.parse_topology('v5e:1x1')
PLAIN = Settings('float32', 'none', '')


@pytest.fixture
def on_cpu(monkeypatch):
  monkeypatch.setattr(targets, 'devices_of', lambda target, memory=None: jax.devices('cpu')[: target.count])


@pytest.mark.slow
def test_inference_needs_its_weights_and_more_for_every_image(on_cpu):
  work = Inference(small_config(), TARGET, Store(None))
  one, two = (work.measure(PLAIN, images) for images in (1, 2))
  side = small_config().image_size
  assert two.bytes - one.bytes >= 4 * 3 * side**2 and two.seconds['v5e'] > one.seconds['v5e']
  assert work.measure(PLAIN, 2) is not None and work.known(PLAIN, 2) == two
  assert work.known(Settings('bfloat16', 'none', ''), 2) is None


def test_training_describes_each_program_by_what_it_depends_on(on_cpu):
  config = files.load('ldit:shapes', ['init_from='])
  store, compiled = Store(None), []
  work = Training(config, TARGET, store, compiled.append)
  description_of = {}
  for settings, images, parts in (
    (PLAIN, 2, 1),
    (PLAIN, 4, 1),
    (PLAIN, 2, 2),
    (Settings('float32', 'block', ''), 2, 1),
  ):
    changed = work.with_settings(settings, images, parts)
    assert changed.data.batch_size == images * parts and changed.accumulate == parts
    description_of[settings, images, parts] = changed.to_json_best_effort()
  assert len(set(description_of.values())) == 4 and not compiled
  trained = work.gradient_bytes(PLAIN)
  assert trained > work.gradient_bytes(Settings('float32', 'none', 'image_encoder,text_encoder')) > 0
  assert trained % 4 == 0


def test_the_command_finds_what_fits(monkeypatch, tmp_path, capsys):
  """Programs need 2 GiB, and 1 GiB for each image, half without saved activations."""

  def measure(self, settings, images, parts):
    needed = 2 + images * (1 if settings.remat == 'elementwise' else 0.5)
    return Figures(int(needed * 2**30), {'l4': 0.01 * images}, 60.0)

  monkeypatch.setattr(Training, 'measure', measure)
  out = tmp_path / 'fit.json'
  assert (
    compile_report.main(
      ['--config=ldit', '--fit=l4:1', '--config.total_steps=900', f'--cache={tmp_path / "f"}', f'--json={out}']
    )
    == 0
  )
  printed = capsys.readouterr().out
  assert 'ldit on l4:1: 64 samples per update, 20.1 GiB usable per device' in printed
  rows = [line.split() for line in printed.splitlines() if line.startswith('bfloat16')]
  assert [row[:5] for row in rows] == [
    ['bfloat16', 'elementwise', '-', '18', '4'],
    ['bfloat16', 'products', '-', '36', '2'],
    ['bfloat16', 'block', '-', '36', '2'],
  ]
  assert (
    '--config.total_steps=900 --config.dtype=bfloat16 --config.remat=elementwise --config.accumulate=4 '
    '--workdir=runs/fit' in printed
  )
  kept = json.loads(out.read_text())
  assert kept['best'] in kept['choices'] and (kept['devices'], kept['best']['accumulate']) == (1, 4)
  assert kept['best']['images_per_second_per_device'] == pytest.approx(100)


@pytest.mark.parametrize(
  'config, own, needs, tried',
  [
    ('ldit', [], 'image_encoder,text_encoder', ['-', 'text_encoder', 'image_encoder,text_encoder']),
    ('ldit_frozen_text', [], 'text_encoder', ['text_encoder']),  # as the config says: nothing to explain
    ('ldit_frozen_text', [], 'text_encoder,image_encoder', ['text_encoder', 'text_encoder,image_encoder']),
    ('ldit', ['freeze=text_encoder'], 'text_encoder', ['text_encoder']),
    ('ldit', ['freeze=text_encoder'], 'image_encoder,text_encoder', ['text_encoder']),  # nothing fits
  ],
)
def test_more_is_frozen_than_the_config_says_only_if_nothing_else_fits(
  monkeypatch, tmp_path, capsys, config, own, needs, tried
):
  """Programs fit only with `needs` frozen."""

  def measure(self, settings, images, parts):
    return Figures(int((1 if settings.freeze == needs else 30) * 2**30), {'l4': 0.01 * images}, 60.0)

  monkeypatch.setattr(Training, 'measure', measure)
  options = [f'--config.{change}' for change in ['remat=block', 'total_steps=900', *own]]
  compile_report.main([f'--config={config}', '--fit=l4:1', *options, f'--cache={tmp_path / "f"}'])
  printed = capsys.readouterr().out
  assert [line.split()[2] for line in printed.splitlines() if line.startswith('bfloat16')] == tried
  reason = f'does not fit; this leaves {needs} as it is.'
  assert (reason in printed) == (len(tried) > 1) and ('Nothing fits' in printed) == (needs not in tried)


def test_what_a_config_freezes_stays_frozen_where_more_must_be(monkeypatch):
  """Of a plain SAM with a frozen decoder and prompt encoder, nothing would be left to train."""
  tried = []

  def measure(self, settings, images, parts):
    tried.append(settings.freeze)
    return Figures(30 * 2**30, {'l4': 0.01 * images}, 60.0)

  monkeypatch.setattr(Training, 'measure', measure)
  target = targets.parse_topology('l4:1')
  for name, freeze in (('ldit', 'mask_decoder'), ('sam_pretrain:shapes', 'mask_decoder,prompt_encoder')):
    config = files.load(name, ['total_steps=900'])
    config.freeze = freeze
    assert fit.training(config, [], target, Store(None)).best is None
  assert list(dict.fromkeys(tried)) == [
    'mask_decoder',
    'mask_decoder,text_encoder',
    'mask_decoder,image_encoder,text_encoder',
    'mask_decoder,prompt_encoder',
  ]


def test_micro_batches_of_sentences_and_clicks_keep_their_shares(monkeypatch, tmp_path, capsys):
  """A quarter of the samples has no sentence, so a micro-batch has a multiple of four."""

  def measure(self, settings, images, parts):
    checks.check(self.with_settings(settings, images, parts))
    return Figures(int((2 + images) * 2**30), {'l4': 0.01 * images}, 60.0)

  monkeypatch.setattr(Training, 'measure', measure)
  options = ['--config.task=interactive', '--config.total_steps=900', f'--cache={tmp_path / "f"}']
  compile_report.main(['--config=ldit', '--fit=l4:1', *options])
  rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith('bfloat16')]
  assert rows[0] == ['bfloat16', 'elementwise', '-', '16', '4', '100']


@pytest.mark.parametrize('change', ['loss.dice=1.0', 'first_prompts.box_jitter=0.2'])
def test_figures_of_other_losses_and_prompts_are_not_reused(change):
  configs = [files.load('ldit', ['task=interactive', *more]) for more in ([], [change])]
  plain, changed = (workloads._description(config) for config in configs)
  assert plain != changed and 'loss' not in plain and 'first_prompts' not in plain


def test_given_fields_stay_as_they_are(monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(Training, 'measure', lambda self, settings, images, parts: Figures(2**30 * 30, {'l4': 1.0}, 60.0))
  options = ['--config.dtype=float32', '--config.remat=block', '--config.freeze=mask_decoder']
  compile_report.main(['--config=ldit', '--fit=l4:1', f'--cache={tmp_path / "f"}', *options])
  printed = capsys.readouterr().out
  assert 'Nothing fits' in printed and printed.count('does not fit') == 1 and 'float32  block  mask_decoder' in printed


def test_only_parts_that_the_model_has_are_frozen(monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(Training, 'measure', lambda self, settings, images, parts: Figures(2**30 * 30, {'l4': 1.0}, 60.0))
  for config, expected in (
    ('sam_pretrain:shapes', ['-', 'image_encoder']),
    ('ldit', ['-', 'text_encoder', 'image_encoder,text_encoder']),
  ):
    assert (
      compile_report.main([f'--config={config}', '--fit=l4:1', '--config.remat=block', f'--cache={tmp_path / "f"}'])
      == 0
    )
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith('bfloat16')]
    assert [row[2] for row in rows] == expected
