"""Several hosts share a prediction job and write the same results as one."""

import json

import numpy as np
import pytest
from PIL import Image

from ditsam_jax import predict
from tests.devices import hosts


def rows_of(path):
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  return {row['image']: row['rle'] for row in rows}


@pytest.fixture(scope='module')
def images(tmp_path_factory):
  folder = tmp_path_factory.mktemp('images')
  for i in range(5):
    pixels = np.full((40, 60, 3), 30, np.uint8)
    pixels[5 * i : 5 * i + 12, 10:40] = (220, 40, 40)
    Image.fromarray(pixels).save(folder / f'{i}.png')
  (folder / '9.png').write_text('no image')
  return folder


@pytest.mark.multiprocess
def test_two_hosts_match_one_and_any_number_of_hosts_can_resume(images, tmp_path, capsys):
  arguments = [f'--image={images}', '--box=8,2,42,38', '--checkpoint=sam_shapes', '--batch-size=2', '--no-pictures']
  shared = [*arguments, f'--json={tmp_path / "r.jsonl"}']
  with hosts(2, 'ditsam_jax.predict', *shared) as processes:
    outputs = [process.communicate(timeout=300) for process in processes]
  statuses = [process.returncode for process in processes]
  assert sorted(statuses) == [0, 2], outputs  # one of them had the damaged image
  assert 'not an image' in outputs[statuses.index(2)][1]
  parts = [rows_of(tmp_path / f'r.host{host}of2.jsonl') for host in range(2)]
  assert sorted(map(len, parts)) == [2, 3] and not (tmp_path / 'r.jsonl').exists()

  assert predict.main([*arguments, f'--json={tmp_path / "alone.jsonl"}']) == 2
  assert parts[0] | parts[1] == rows_of(tmp_path / 'alone.jsonl')

  capsys.readouterr()
  assert predict.main(shared) == 2  # alone: finds the hosts' results and retries the damaged image
  assert '5 results already done' in capsys.readouterr().err
  assert rows_of(tmp_path / 'r.jsonl') == {}
