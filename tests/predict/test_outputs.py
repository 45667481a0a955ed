"""What the command writes and prints for images, folders, prompt files, points, boxes and texts."""

import itertools
import os

import numpy as np
import pytest
from PIL import Image

from ditsam_jax import predict, terminal
from ditsam_jax.geometry.masks import decode_rle
from ditsam_jax.inference.results import Prediction
from tests.predict.command import BrightSegmenter, prompt_file, refused, rows_of, saved


def test_writes_mask_and_overlay_and_prints_a_line(tmp_path, image, capsys):
  output = tmp_path / 'new' / 'output'
  assert predict.main(['--image', image, '--text=the red circle', f'--output={output}']) == 0
  assert sorted(os.listdir(output)) == ['scene.the-red-circle.mask.png', 'scene.the-red-circle.overlay.png']
  mask = np.asarray(Image.open(output / 'scene.the-red-circle.mask.png'))
  assert mask.shape == (10, 20) and (mask[2:6, 5:15] == 255).all() and mask.sum() == 40 * 255
  assert Image.open(output / 'scene.the-red-circle.overlay.png').size == (20, 10)
  printed = capsys.readouterr()
  mask_file = output / 'scene.the-red-circle.mask.png'
  assert printed.out == f"{image}: 'the red circle': 40 pixels (20.0 %), predicted IoU 0.88 -> {mask_file}\n"
  assert printed.err == ''


def test_json_lines_hold_the_whole_result(tmp_path, image, capsys):
  arguments = ['--image', image, '--text=a cat', '--point=6,3', '--point=1,1.5,0', '--box=4,1,16,7']
  assert predict.main([*arguments, f'--output={tmp_path / "out"}', f'--json={tmp_path / "r" / "r.jsonl"}']) == 0
  (row,) = rows_of(tmp_path / 'r' / 'r.jsonl')
  assert decode_rle(row['rle']).nonzero()[0].tolist() == np.repeat([2, 3, 4, 5], 10).tolist()
  assert row['image'] == image and row['id'] is None
  assert row['prompt'] == {'text': 'a cat', 'points': [[6, 3], [1, 1.5]], 'labels': [1, 0], 'box': [4, 1, 16, 7]}
  assert row['box'] == [5, 2, 15, 6] and row['area'] == 40 and row['score'] == pytest.approx(0.876)
  assert row['unknown'] == ['cat'] and row['cut'] == '' and 'candidates' not in row
  assert np.asarray(Image.open(row['mask'])).sum() == 40 * 255
  assert capsys.readouterr().out == ''  # results go to the file


def test_multimask_draws_the_best_mask_and_lists_all_in_json(tmp_path, capsys):
  pixels = np.repeat(np.array([[150, 220, 255, 0]], np.uint8)[..., None], 3, -1)
  image = saved(tmp_path / 'a.png', pixels)
  predict.main(['--image', image, '--point=1,0', '--multimask', f'--json={tmp_path / "r"}', f'--output={tmp_path}/o'])
  (row,) = rows_of(tmp_path / 'r')
  assert [candidate['area'] for candidate in row['candidates']] == [3, 2, 1] and row['area'] == 2
  assert [candidate['score'] for candidate in row['candidates']] == pytest.approx([0.5, 0.876, 0.7])
  assert np.asarray(Image.open(row['mask'])).tolist() == [[0, 255, 255, 0]]


def test_every_image_with_every_text_and_the_points_with_each(tmp_path, capsys):
  images = [saved(tmp_path / f'{name}.png') for name in 'abc']
  arguments = ['--image', images[0], images[1], f'--image={images[2]}', '--text=one', '--text=two', '--point=1,2']
  assert predict.main([*arguments, f'--output={tmp_path / "out"}']) == 0
  parts = itertools.product('abc', ('one-point-1-2', 'two-point-1-2'), ('mask', 'overlay'))
  assert set(os.listdir(tmp_path / 'out')) == {'.'.join(name) + '.png' for name in parts}
  assert len(capsys.readouterr().out.splitlines()) == 6
  assert [prompt.text for prompt in BrightSegmenter.made[0].asked] == ['one', 'two'] * 3
  assert all(prompt.points.tolist() == [[1, 2]] for prompt in BrightSegmenter.made[0].asked)


def test_folders_and_globs(tmp_path, capsys):
  for name in ('b.png', 'a.JPG', 'deep/c.png', 'deep/er/d.webp', '.hidden.png'):
    saved(tmp_path / 'in' / name)
  (tmp_path / 'in' / 'notes.txt').write_text('no image')
  for path, stems in (('in', 'ab'), ('in/*', 'ab'), ('in/**/*', 'abcd'), ('in/deep/*.png', 'c')):
    assert predict.main([f'--image={tmp_path / path}', '--text=x', f'--output={tmp_path / str(len(path))}']) == 0
    names = [os.path.basename(line.split(': ')[0]) for line in capsys.readouterr().out.splitlines()]
    assert sorted(name[0] for name in names) == list(stems), path
  BrightSegmenter.made.clear()
  (tmp_path / 'empty').mkdir()
  assert 'no image files' in refused(f'--image={tmp_path / "empty"}', '--text=x')
  assert 'no file matches' in refused(f'--image={tmp_path / "*.bmp"}', '--text=x')
  assert '1 files match' in refused(f'--image={tmp_path / "in" / "*.txt"}', '--text=x')
  assert 'no such file' in refused(f'--image={tmp_path / "typo.png"}', image_named(tmp_path), '--text=x')


def image_named(folder):
  return f'--image={saved(folder / "there.png")}'


def test_results_written_beside_the_images_are_not_inputs(tmp_path, capsys):
  saved(tmp_path / 'a.png')
  arguments = [f'--image={tmp_path}', '--text=x', f'--output={tmp_path}']
  assert predict.main(arguments) == predict.main(arguments) == 0
  assert sorted(os.listdir(tmp_path)) == ['a.png', 'a.x.mask.png', 'a.x.overlay.png']
  assert capsys.readouterr().err == '1 result already done\n'


def test_a_prompts_file(tmp_path, capsys):
  saved(tmp_path / 'in' / 'a.png')
  saved(tmp_path / 'in' / 'b.png')
  rows = [
    {'image': 'in/a.png', 'text': 'red', 'id': 'first'},
    {'image': 'in/a.png', 'points': [[1, 2], [3, 3]], 'labels': [1, 0], 'text': None},
    {'image': 'in/b.png', 'box': [0, 0, 2.5, 3], 'id': 7},
  ]
  prompts = prompt_file(tmp_path / 'p.jsonl', *rows)
  assert predict.main([prompts, f'--json={tmp_path / "r"}', '--no-pictures']) == 0
  written = rows_of(tmp_path / 'r')
  assert [row['image'] for row in written] == ['in/a.png', 'in/a.png', 'in/b.png']
  assert [row['id'] for row in written] == ['first', None, 7]
  assert [row['prompt'] for row in written] == [
    {'text': 'red'}, {'points': [[1, 2], [3, 3]], 'labels': [1, 0]}, {'box': [0, 0, 2.5, 3]},
  ]  # fmt: skip
  assert all('mask' not in row for row in written)
  (tmp_path / 'elsewhere').mkdir()
  moved = prompt_file(tmp_path / 'elsewhere' / 'p.jsonl', *rows)
  assert predict.main([moved, f'--images-dir={tmp_path}', f'--output={tmp_path / "out"}']) == 0
  assert {'a.first.mask.png', 'a.point-1-2-not-3-3.mask.png', 'b.7.mask.png'} < set(os.listdir(tmp_path / 'out'))


def test_progress_without_a_terminal(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(terminal._Lines, 'INTERVAL', -1)
  for name in 'abc':
    saved(tmp_path / f'{name}.png')
  assert predict.main([f'--image={tmp_path}', '--text=red', '--no-pictures', f'--json={tmp_path / "r"}']) == 0
  *lines, summary = capsys.readouterr().err.splitlines()
  assert lines[:2] == ['predict: 1 of 3 results', 'predict: 2 of 3 results, 0:00:00 left'] and len(lines) == 3
  assert summary.startswith('3 results in ') and summary.endswith(' a second): 3 found nothing')


def test_file_names_cannot_forge_output_lines(tmp_path, capsys):
  image = saved(tmp_path / 'x\nerror: pwned.png')
  (tmp_path / 'bad\nerror: pwned.png').write_text('no image')
  assert predict.main([f'--image={tmp_path}', '--text=red', f'--output={tmp_path / "out"}']) == 2
  printed = capsys.readouterr()
  assert os.path.exists(image) and 'x\\nerror: pwned.png' in printed.out
  assert not any(line.startswith('error: pwned') for line in (printed.out + printed.err).splitlines())


def test_read_ahead_is_bounded(tmp_path, monkeypatch):
  """Few images are held in memory, however long the job."""
  from ditsam_jax.jobs import background

  image = saved(tmp_path / 'a.png', np.zeros((100, 100, 3), np.uint8))
  monkeypatch.setattr(background, 'MOST', 5)
  read = []
  monkeypatch.setattr(background, 'read_image', lambda path: read.append(path) or np.zeros((9, 9, 3), np.uint8))
  rows = [{'image': f'{image}{i}', 'text': 'x'} for i in range(40)]
  prompt_file(tmp_path / 'p', *rows)
  ahead = []

  def stream(self, requests):
    for number, (pixels, prompt) in enumerate(requests):
      ahead.append(len(read) - number)
      yield Prediction(prompt, pixels, np.zeros((1, 9, 9), bool), np.ones(1, np.float32), np.zeros((1, 9, 9)), None)

  monkeypatch.setattr(BrightSegmenter, 'stream', stream)
  assert predict.main([f'--prompts={tmp_path / "p"}', '--no-pictures', f'--json={tmp_path / "r"}']) == 0
  assert max(ahead) <= 5 and len(rows_of(tmp_path / 'r')) == 40
