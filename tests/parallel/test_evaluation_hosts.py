"""Evaluation on two hosts is bit-identical to one."""

import dataclasses
import json

import pytest

from ditsam_jax.data import datasets
from ditsam_jax.evaluate import main
from ditsam_jax.models.config import ImageEncoderConfig
from ditsam_jax.parallel.distributed import gathered
from ditsam_jax.storage import saved_model
from tests.devices import hosts
from tests.small_models import random_model, small_config

# Images are resized, so the protocols differ.
SCENES = {'image_size': 80, 'train': 1, 'val': 2, 'test': 5}


def test_on_a_single_host_gathering_returns_its_rows():
  rows = [[1, 'a'], [2, None]]
  assert gathered(rows) is rows


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A folder with a model and its evaluation data."""
  folder = tmp_path_factory.mktemp('hosts')
  # With this threshold, masks from random weights cover half of the image.
  encoder = ImageEncoderConfig(width=24, depth=1, heads=2, global_blocks=(0,), pretrain_grid=4)
  config = small_config(fusion='none', image_encoder=encoder, max_text_tokens=8, mask_threshold=0.523)
  text_encoder = dataclasses.replace(config.text_encoder, vocab_size=128)
  decoder = dataclasses.replace(config.mask_decoder, depth=1)  # compiles in half the time
  config = dataclasses.replace(config, mask_decoder=decoder, text_encoder=text_encoder)
  saved_model.save(
    folder / 'model',
    random_model(config),
    vocabulary=datasets.vocabulary('shapes'),
    data={'dataset': 'shapes', 'scenes': SCENES},
  )
  datasets.open_split('shapes', folder / 'data', 'val', scenes=SCENES)  # prepared once, not on each host
  return folder


def arguments(place, output, *more):
  return [
    f'--checkpoint={place / "model"}',
    f'--data-dir={place / "data"}',
    '--splits=val,test',
    '--limit=75',
    f'--output={output}',
    *more,
  ]


@pytest.mark.multiprocess
def test_two_hosts_with_two_devices_write_the_same_as_one_with_one(place, tmp_path):
  with hosts(
    2,
    'ditsam_jax.evaluate',
    *arguments(place, tmp_path / 'host{host}', '--batch-size=8', '--save-pictures=2'),
    devices=2,
  ) as both:
    alone = tmp_path / 'alone'
    main(arguments(place, alone, '--batch-size=5'))
    outputs = [host.communicate(timeout=300) for host in both]
  assert [host.returncode for host in both] == [0, 0], outputs
  (first, _), (second, _) = outputs
  assert 'mIoU' in first and 'mIoU' not in second and not (tmp_path / 'host1').exists()
  for split in ('val', 'test'):
    file = f'samples-{split}.csv'
    assert (tmp_path / 'host0' / file).read_text() == (alone / file).read_text()
    assert (tmp_path / 'host0' / f'ranked-{split}.png').exists()
  figures, expected = (json.loads((folder / 'metrics.json').read_text()) for folder in (tmp_path / 'host0', alone))
  for found in (figures, expected):
    for split in ('val', 'test'):
      assert found['splits'][split].pop('seconds') >= 0
  assert expected['splits']['val']['release']['mIoU'] != expected['splits']['val']['standard']['mIoU']
  assert figures == expected and figures['splits']['test']['samples'] == 75
