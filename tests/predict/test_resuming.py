"""Interrupted and repeated commands: they resume their own results and never overwrite others."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from ditsam_jax import predict
from ditsam_jax.inference.prompts import Prompt
from ditsam_jax.jobs.outputs import NOTES
from ditsam_jax.jobs.requests import Request
from ditsam_jax.storage.image_files import write_png
from tests.predict.command import BrightSegmenter, prompt_file, refused, rows_of, saved


@pytest.mark.parametrize('with_json', [False, True])
def test_an_interrupted_job_leaves_complete_files_and_resumes(tmp_path, monkeypatch, capsys, with_json):
  images = [saved(tmp_path / 'in' / f'{i:02}.png', np.full((6, 6, 3), 20 * i, np.uint8)) for i in range(12)]
  lines = [f'--json={tmp_path / "r"}'] if with_json else []
  arguments = [f'--image={tmp_path / "in"}', '--text=red', f'--output={tmp_path / "out"}', '--batch-size=2', *lines]
  monkeypatch.setattr(BrightSegmenter, 'interrupt_after', 7)
  with pytest.raises(KeyboardInterrupt):
    predict.main(arguments)
  there = os.listdir(tmp_path / 'out')
  assert all(name.endswith('.png') and not name.startswith('.') for name in there)
  for name in there:
    Image.open(tmp_path / 'out' / name).load()
  done = len(rows_of(tmp_path / 'r')) if with_json else sum('mask' in name for name in there)
  assert done == 7  # every result of the model was written
  capsys.readouterr()
  monkeypatch.setattr(BrightSegmenter, 'interrupt_after', None)
  assert predict.main(arguments) == 0
  assert len(BrightSegmenter.made[-1].asked) == 12 - done
  assert BrightSegmenter.made[-1].batch_size == 2
  assert f'{done:,} result' in capsys.readouterr().err
  assert len(os.listdir(tmp_path / 'out')) == 24
  if with_json:
    assert [row['image'] for row in rows_of(tmp_path / 'r')] == images
  made = len(BrightSegmenter.made)
  assert predict.main(arguments) == 0 and len(BrightSegmenter.made) == made  # nothing left, so no model


def test_a_truncated_last_line_is_redone(tmp_path, capsys):
  for name in 'ab':
    saved(tmp_path / f'{name}.png')
  results = tmp_path / 'r.jsonl'
  arguments = [f'--image={tmp_path}', '--text=red', '--no-pictures', f'--json={results}']
  assert predict.main(arguments) == 0
  whole = results.read_bytes()
  first = whole.index(b'\n') + 1
  for length in (first + 1, first + 40, len(whole) - 2, len(whole) - 1):
    results.write_bytes(whole[:length])
    assert predict.main(arguments) == 0
    assert results.read_bytes() == whole, length
  results.write_bytes(whole[: first + 40] + b'\0' * 100)  # as after a power cut
  assert predict.main(arguments) == 0 and results.read_bytes() == whole


def test_a_failed_request_is_retried(tmp_path, capsys):
  (tmp_path / 'a.png').write_text('no image')
  saved(tmp_path / 'b.png')
  arguments = [f'--image={tmp_path}', '--text=red', '--no-pictures', f'--json={tmp_path / "r"}']
  assert predict.main(arguments) == 2
  saved(tmp_path / 'a.png')
  assert predict.main(arguments) == 0
  assert [os.path.basename(row['image']) for row in rows_of(tmp_path / 'r')] == ['b.png', 'a.png']


def test_results_of_different_settings_are_not_mixed(tmp_path, image, capsys):
  out, results = f'--output={tmp_path / "out"}', f'--json={tmp_path / "r"}'
  assert predict.main(['--image', image, '--point=6,3', out]) == 0
  assert predict.main(['--image', image, '--point=6,3', '--no-pictures', results]) == 0
  BrightSegmenter.made.clear()
  for changed, name in (
    (['--multimask'], 'multimask'),
    (['--dtype=bfloat16'], 'dtype'),
    (['--checkpoint=sam_shapes'], 'model'),
  ):
    assert f'made with {name} ' in refused('--image', image, '--point=6,3', out, *changed)
    assert f'made with {name} ' in refused('--image', image, '--point=6,3', '--no-pictures', results, *changed)
  assert predict.main(['--image', image, '--point=6,3', out, '--dtype=float32']) == 0  # auto means float32 on CPUs
  assert 'made without pictures' in refused('--image', image, '--point=6,3', out, results)
  predict.main([prompt_file(tmp_path / 'p', {'image': image, 'text': 'red', 'id': 1}), '--no-pictures', results])
  BrightSegmenter.made.clear()
  other = prompt_file(tmp_path / 'p', {'image': image, 'text': 'blue', 'id': 1})
  assert 'line 1: id 1 is already in ' in refused(other, '--no-pictures', results)


def test_results_count_as_done_only_with_their_pictures(tmp_path, image):
  (tmp_path / 'a').mkdir()
  arguments = ['--image', image, '--text=red', f'--json={tmp_path / "r"}']
  out, mask = f'--output={tmp_path / "out"}', tmp_path / 'out' / 'scene.red.mask.png'
  assert predict.main([*arguments, out]) == 0
  before = (tmp_path / 'r').read_bytes()
  twin = saved(tmp_path / 'a' / 'scene.png')  # results get other names, but the old ones stay
  assert predict.main([*arguments, '--image', twin, out]) == 0
  assert len(rows_of(tmp_path / 'r')) == 2
  (tmp_path / 'r').write_bytes(before)
  BrightSegmenter.made.clear()
  lost = f"r has the result of {image}: 'red', but its picture is not in {tmp_path}"
  assert f'{lost}/new; give the --output that has it' in refused(*arguments, f'--output={tmp_path / "new"}')
  mask.unlink()
  assert f'{lost}/out; ' in refused(*arguments, out)
  assert predict.main([*arguments, '--no-pictures']) == 0 and (tmp_path / 'r').read_bytes() == before
  others = ['--image', twin, '--text=red', f'--json={tmp_path / "r"}', f'--output={tmp_path / "new"}']
  assert predict.main(others) == 0 and (tmp_path / 'new' / 'scene.red.mask.png').exists()


def test_files_of_other_programs_are_never_overwritten(tmp_path, image, capsys):
  (tmp_path / 'out').mkdir()
  mine = tmp_path / 'out' / 'scene.red.mask.png'
  saved(mine)
  before = mine.read_bytes()
  assert 'belongs to another image or prompt' in refused('--image', image, '--text=red', f'--output={tmp_path / "out"}')
  assert mine.read_bytes() == before
  large = b'{"image": "a.png", "key": "10000000000000000", "made_by": {}}'
  for content in (b'{"images": [', b'{"image": "a.png", "text": "b"}', b'a,b\n1,2\n', b'[1]\n{"image": "', large):
    (tmp_path / 'r').write_bytes(content)
    line = refused('--image', image, '--text=red', '--no-pictures', f'--json={tmp_path / "r"}')
    assert 'not a result of this command' in line and (tmp_path / 'r').read_bytes() == content
  prompts = prompt_file(tmp_path / 'p', {'image': image, 'text': 'red'})
  assert 'this is the prompts file' in refused(prompts, '--no-pictures', f'--json={tmp_path / "p"}')


def test_overlays_of_another_command_or_program_are_never_overwritten(tmp_path, image, capsys):
  overlay = tmp_path / 'out' / 'scene.red.overlay.png'
  arguments = ['--image', image, '--text=red', f'--output={tmp_path / "out"}']
  key = f'{Request(image, image, Prompt("red"), None, 0, "").key():016x}'
  everything = {'key': key, 'made_by': {'model': '0', 'dtype': 'float32', 'points_per_side': 32}}
  for notes, expected in ((None, 'belongs to another'), (everything, 'was made with model 0')):
    write_png(overlay, np.zeros((4, 4), bool), notes=notes and {NOTES: json.dumps(notes)})
    before = overlay.read_bytes()
    assert expected in refused(*arguments)
    assert overlay.read_bytes() == before
  overlay.unlink()
  assert predict.main(arguments) == 0
  (tmp_path / 'out' / 'scene.red.mask.png').unlink()  # as if killed before it was written
  assert predict.main(arguments) == 0
  saved(overlay)  # without notes, as earlier versions wrote it
  assert predict.main(arguments) == 0 and len(BrightSegmenter.made) == 2


def test_two_processes_cannot_write_the_same_file(tmp_path, image):
  import fcntl

  with open(tmp_path / 'r', 'ab') as other:
    fcntl.flock(other, fcntl.LOCK_EX)
    assert 'another process' in refused('--image', image, '--text=red', '--no-pictures', f'--json={tmp_path / "r"}')
