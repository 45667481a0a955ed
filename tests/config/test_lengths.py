"""Lengths are derived from the changed config and the prepared data."""

import json

import pytest
from ml_collections import ConfigDict

from ditsam_jax.config import files
from ditsam_jax.config.lengths import resolve, samples_without_data
from ditsam_jax.data import datasets
from ditsam_jax.errors import UserError


def lengths(argument, *overrides, samples=None):
  """Returns total_steps, warmup_steps, eval_every and checkpoint_every."""
  config = files.load(argument, list(overrides))
  config = resolve(config, (lambda: samples) if samples else (lambda: samples_without_data(config)))
  return config.total_steps, config.optimizer.warmup_steps, config.eval_every, config.checkpoint_every


def test_the_releases_lengths():
  """40 epochs, 3 of them warm-up, of 42,404 objects in batches of 64, as computed by the release's code."""
  assert lengths('ldit:refcoco') == (40 * 663, 3 * 663, 663, 663)


@pytest.mark.parametrize(
  'name, epochs',
  [
    ('sam_text', 25),
    ('sam_text_add_2', 25),
    ('sam_text_add_4', 25),
    ('ldit_frozen_text', 25),
    ('cross_attention', 25),
    ('ldit_vith', 25),
    ('edit', 40),
    ('ldit_token', 40),
    ('edit_token', 40),
  ],
)
def test_the_releases_epochs(name, epochs):
  assert lengths(f'{name}:refcocog')[:2] == (epochs * 660, 3 * 660)  # 42,226 objects in batches of 64


def test_epochs_do_not_depend_on_the_batch_size():
  assert lengths('ldit', 'data.batch_size=128') == (40 * 332, 3 * 332, 332, 332)
  assert lengths('ldit', 'data.batch_size=128', 'epochs=10')[:2] == (10 * 332, 249)  # 7.5 %


def test_a_partition_has_its_own_epoch():
  assert lengths('ldit:refcocog/google') == lengths('ldit:refcocog', 'data.dataset=refcocog/google')
  assert lengths('ldit:refcocog/google')[0] == 40 * 701  # 44,822 objects in batches of 64


def test_the_prepared_data_determines_the_epoch():
  assert lengths('ldit', samples=1000) == (40 * 16, 3 * 16, 16, 16)
  assert lengths('ldit', samples=1) == (40, 3, 1, 1)


@pytest.mark.parametrize(
  'config, overrides, expected',
  [
    ('ldit:shapes', [], (1000, 100)),
    ('ldit:shapes', ['total_steps=60'], (60, 6)),
    ('ldit:shapes', ['total_steps=1'], (1, 0)),
    ('ldit:shapes', ['total_steps=60', 'optimizer.warmup_steps=50'], (60, 50)),
    ('ldit:shapes', ['optimizer.warmup_steps=0'], (1000, 0)),
    ('ldit:refcoco', ['total_steps=60'], (60, 4)),
    ('ldit:refcoco', ['total_steps=3'], (3, 0)),
    ('ldit_vith', ['total_steps=100'], (100, 12)),
    ('sam_pretrain', [], (2800, 200)),
    ('sam_pretrain', ['total_steps=14'], (14, 1)),
  ],
)
def test_explicit_steps_take_precedence_and_the_warm_up_scales(config, overrides, expected):
  assert lengths(config, *overrides)[:2] == expected


def test_shapes_in_epochs_need_their_data():
  assert lengths('ldit:shapes', 'epochs=2', samples=640)[:2] == (20, 2)
  with pytest.raises(UserError, match=r'unknown until it is prepared; give --config.total_steps=N'):
    lengths('ldit:shapes', 'epochs=2')


def test_data_is_counted_only_if_a_length_depends_on_it():
  config = files.load('ldit:shapes', [])
  resolved = resolve(config, lambda: pytest.fail('counted'))
  assert resolved.epochs is None and config.optimizer.warmup_steps is None
  again = resolve(ConfigDict(resolved.to_json()), lambda: pytest.fail('counted'))
  assert again == resolved


def test_lengths_that_are_too_long_or_contradictory_are_refused():
  with pytest.raises(UserError, match='config.epochs is 1e.06.*expected at most 1,000,000,000'):
    lengths('ldit', 'epochs=1000000', 'data.batch_size=1')
  with pytest.raises(UserError, match='total_steps is 5; expected None, because config.epochs is 3'):
    lengths('ldit', 'epochs=3', 'total_steps=5')
  with pytest.raises(
    UserError, match=r'config.optimizer.warmup_steps is 2000; expected fewer than total_steps \(640\)'
  ):
    lengths('ldit', 'optimizer.warmup_steps=2000', samples=1000)


def test_prepared_data_is_counted_without_reading_it(tmp_path):
  assert datasets.size('refcoco', tmp_path, 'train').objects == 42_404
  assert datasets.size('grefcoco', tmp_path, 'train').objects == 42_404  # falls back to RefCOCO's
  folder = tmp_path / 'refcoco' / 'unc' / '1.0.0'
  folder.mkdir(parents=True)
  (folder / 'dataset_info.json').write_text('{}')
  (folder / 'metadata.json').write_text(json.dumps({'splits': {'train': {'images': 5, 'objects': 7}}}))
  assert datasets.size('refcoco', tmp_path, 'train')[:2] == (5, 7)
  assert datasets.size('refcoco', tmp_path, 'val').objects == 3811
