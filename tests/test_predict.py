"""The command: files for every image and prompt, one line for whatever is wrong, and the rest still done."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ditsam_jax import predict, terminal
from ditsam_jax.errors import UserError
from ditsam_jax.geometry.masks import decode_rle
from ditsam_jax.inference.results import Prediction


class BrightSegmenter:
  """Takes bright pixels for the object; knows neither 'cat' nor more than four words."""

  made: list['BrightSegmenter'] = []
  interrupt_after = None

  def __init__(self, checkpoint, *, batch_size, dtype):
    self.batch_size, self.dtype, self.asked = batch_size, dtype, []
    self.made.append(self)

  def stream(self, requests):
    requests = iter(requests)
    while batch := list(itertools.islice(requests, self.batch_size)):
      for image, prompt in batch:
        if len(self.asked) == self.interrupt_after:
          raise KeyboardInterrupt
        self.asked.append(prompt)
        masks = np.stack([image[..., 0] > level for level in ((127, 200, 250) if prompt.multimask else (127,))])
        words = (prompt.text or '').split()
        scores = np.array([0.5, 0.876, 0.7] if prompt.multimask else [0.876], np.float32)
        yield Prediction(
          prompt, image, masks, scores, np.zeros(masks.shape, np.float32), masks, ' '.join(words[4:]),
          tuple(word for word in words if word == 'cat'),
        )  # fmt: skip


@pytest.fixture(autouse=True)
def bright_segmenter(monkeypatch):
  monkeypatch.setattr(predict, 'Segmenter', BrightSegmenter)
  monkeypatch.setattr(BrightSegmenter, 'made', [])


@pytest.fixture
def image(tmp_path):
  pixels = np.zeros((10, 20, 3), np.uint8)
  pixels[2:6, 5:15] = 255
  return saved(tmp_path / 'scene.png', pixels)


def saved(path, pixels=None):
  path.parent.mkdir(exist_ok=True, parents=True)
  Image.fromarray(np.zeros((4, 4, 3), np.uint8) if pixels is None else pixels).save(path)
  return str(path)


def rows_of(path):
  return [json.loads(line) for line in Path(path).read_text().splitlines()]


def prompt_file(path, *rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return f'--prompts={path}'


def refused(*arguments):
  with pytest.raises(UserError) as caught:
    predict.main(list(map(str, arguments)))
  assert not BrightSegmenter.made, 'the model was loaded'
  (line,) = str(caught.value).splitlines()
  return line


def test_writes_mask_and_overlay_and_says_so(tmp_path, image, capsys):
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


def test_json_has_all_there_is_to_know(tmp_path, image, capsys):
  arguments = ['--image', image, '--text=a cat', '--point=6,3', '--point=1,1.5,0', '--box=4,1,16,7']
  assert predict.main([*arguments, f'--output={tmp_path / "out"}', f'--json={tmp_path / "r" / "r.jsonl"}']) == 0
  (row,) = rows_of(tmp_path / 'r' / 'r.jsonl')
  assert decode_rle(row['rle']).nonzero()[0].tolist() == np.repeat([2, 3, 4, 5], 10).tolist()
  assert row['image'] == image and row['id'] is None
  assert row['prompt'] == {'text': 'a cat', 'points': [[6, 3], [1, 1.5]], 'labels': [1, 0], 'box': [4, 1, 16, 7]}
  assert row['box'] == [5, 2, 15, 6] and row['area'] == 40 and row['score'] == pytest.approx(0.876)
  assert row['unknown'] == ['cat'] and row['cut'] == '' and 'candidates' not in row
  assert np.asarray(Image.open(row['mask'])).sum() == 40 * 255
  assert capsys.readouterr().out == ''  # the file has it


def test_multimask_gives_the_best_as_picture_and_all_in_json(tmp_path, capsys):
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


def test_results_in_the_folder_of_the_images_are_no_images(tmp_path, capsys):
  saved(tmp_path / 'a.png')
  arguments = [f'--image={tmp_path}', '--text=x', f'--output={tmp_path}']
  assert predict.main(arguments) == predict.main(arguments) == 0
  assert sorted(os.listdir(tmp_path)) == ['a.png', 'a.x.mask.png', 'a.x.overlay.png']
  assert capsys.readouterr().err == '1 result already done\n'


def test_a_file_of_prompts(tmp_path, capsys):
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


def test_bad_images_are_told_at_the_end_and_the_others_done(tmp_path, image, capsys):
  (tmp_path / 'text.png').write_text('no image')
  (tmp_path / 'cut.png').write_bytes(Path(image).read_bytes()[:60])
  bad = [str(tmp_path / 'text.png'), str(tmp_path / 'cut.png')]
  arguments = ['--image', *bad, image, '--text=red', '--text=blue', f'--output={tmp_path / "out"}']
  assert predict.main(arguments) == 2
  printed = capsys.readouterr()
  assert len(printed.out.splitlines()) == 2 and len(os.listdir(tmp_path / 'out')) == 4
  summary, *errors = printed.err.splitlines()
  assert summary.startswith('2 results in ') and summary.endswith(', 4 failed')
  assert len(errors) == 2 and all(line.startswith('error: ') for line in errors)
  assert all(repr(path) in line for path, line in zip(bad, errors))


def test_many_failures_are_cut_with_a_count(tmp_path, capsys):
  rows = [{'image': f'{i}.png', 'text': 'x'} for i in range(50)]
  assert predict.main([prompt_file(tmp_path / 'p', *rows), f'--output={tmp_path / "out"}']) == 2
  errors = capsys.readouterr().err.splitlines()[1:]
  assert len(errors) == 21 and 'p line 1:' in errors[0] and '30 more' in errors[-1]


def test_points_and_boxes_outside_of_an_image_are_failures(tmp_path, image, capsys):
  for wrong in ('--point=21,3', '--point=3,-1', '--box=30,1,40,5'):
    assert predict.main(['--image', image, wrong, f'--output={tmp_path / "out"}']) == 2
    assert 'outside of the image, 20 x 10 pixels' in capsys.readouterr().err
  assert predict.main(['--image', image, '--point=20,10', '--box=-1,-1,21,11', f'--output={tmp_path / "out"}']) == 0


def test_words_that_are_unknown_or_left_out_are_a_warning(tmp_path, image, capsys):
  arguments = ['--image', image, saved(tmp_path / 'black.png'), '--text=big red round cat thing']
  assert predict.main([*arguments, f'--output={tmp_path / "out"}']) == 0
  printed = capsys.readouterr()
  *warnings, summary = printed.err.splitlines()
  assert warnings == [
    'warning: words the model does not know: cat',
    "warning: 'big red round cat thing' exceeds the model's token limit; cut: 'thing'",
  ]
  assert '1 found nothing, 2 with words that the model does not know, 2 with words cut' in summary
  assert 'nothing found' in printed.out.splitlines()[1]


def test_results_never_share_a_file(tmp_path, capsys):
  names = ('x y.png', 'x-y.png', 'X-y.png')
  images = [saved(tmp_path / folder / name) for folder in ('a', 'b', 'c/a') for name in names]
  texts = ['the cup', 'the cup?', 'The/cup', '../the cup']
  arguments = ['--image', *images, *[f'--text={text}' for text in texts], f'--output={tmp_path / "out"}']
  assert predict.main(arguments) == 0
  files = [path.relative_to(tmp_path / 'out') for path in (tmp_path / 'out').rglob('*.png')]
  assert len({str(file).casefold() for file in files}) == len(files) == 9 * 4 * 2
  assert all(len(file.parts) == 2 and not file.name.startswith('.') for file in files)
  assert len({file.parts[0] for file in files}) == 9  # a folder an image


def test_only_images_whose_stems_repeat_get_folders(tmp_path, capsys):
  images = [saved(tmp_path / name) for name in ('a/x.png', 'b/x.png', 'b/y.png')]
  assert predict.main(['--image', *images, '--text=red', f'--output={tmp_path / "out"}']) == 0
  files = sorted(str(path.relative_to(tmp_path / 'out')) for path in (tmp_path / 'out').rglob('*.mask.png'))
  assert files == ['a-x-png/red.mask.png', 'b-x-png/red.mask.png', 'y.red.mask.png']


def test_names_stay_within_what_file_systems_allow(tmp_path):
  image = saved(tmp_path / ('n' * 240 + '.png'))
  texts = ['word ' * 200, 'кружка ' * 100, '???']
  arguments = ['--image', image, *[f'--text={text}' for text in texts], f'--output={tmp_path / "out"}']
  assert predict.main(arguments) == 0
  assert len(os.listdir(tmp_path / 'out')) == 6


def test_an_input_in_the_output_folder_is_not_overwritten(tmp_path, capsys):
  pixels = np.full((4, 4, 3), 77, np.uint8)
  image, twin = saved(tmp_path / 'cup.png', pixels), saved(tmp_path / 'cup.red.mask.png', pixels)
  assert predict.main(['--image', image, twin, '--text=red', f'--output={tmp_path}']) == 0
  assert np.asarray(Image.open(twin)).tolist() == pixels.tolist()
  assert (tmp_path / 'cup.red.1.mask.png').exists()


def test_a_request_given_twice_is_done_once_and_said(tmp_path, image, capsys):
  again = f'{tmp_path}/./scene.png'
  assert predict.main(['--image', image, image, again, '--text=a', '--text=a', f'--output={tmp_path / "out"}']) == 0
  printed = capsys.readouterr()
  assert len(printed.out.splitlines()) == 1 and printed.err == '1 request repeats others; each is done once\n'


@pytest.mark.parametrize('with_json', [False, True])
def test_an_interrupted_job_leaves_whole_files_and_is_resumed(tmp_path, monkeypatch, capsys, with_json):
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
  assert done == 7  # nothing that the model has done is lost
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


def test_a_cut_off_last_line_is_done_again(tmp_path, capsys):
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


def test_a_failed_request_is_tried_again(tmp_path, capsys):
  (tmp_path / 'a.png').write_text('no image')
  saved(tmp_path / 'b.png')
  arguments = [f'--image={tmp_path}', '--text=red', '--no-pictures', f'--json={tmp_path / "r"}']
  assert predict.main(arguments) == 2
  saved(tmp_path / 'a.png')
  assert predict.main(arguments) == 0
  assert [os.path.basename(row['image']) for row in rows_of(tmp_path / 'r')] == ['b.png', 'a.png']


def test_results_of_other_commands_are_not_mixed(tmp_path, image, capsys):
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
  assert predict.main(['--image', image, '--point=6,3', out, '--dtype=float32']) == 0  # what auto is on a CPU
  assert 'made without pictures' in refused('--image', image, '--point=6,3', out, results)
  predict.main([prompt_file(tmp_path / 'p', {'image': image, 'text': 'red', 'id': 1}), '--no-pictures', results])
  BrightSegmenter.made.clear()
  other = prompt_file(tmp_path / 'p', {'image': image, 'text': 'blue', 'id': 1})
  assert 'line 1: id 1 is already in ' in refused(other, '--no-pictures', results)


def test_what_is_not_ours_is_never_written_over(tmp_path, image, capsys):
  (tmp_path / 'out').mkdir()
  mine = tmp_path / 'out' / 'scene.red.mask.png'
  saved(mine)
  before = mine.read_bytes()
  assert 'not of this image and prompt' in refused('--image', image, '--text=red', f'--output={tmp_path / "out"}')
  assert mine.read_bytes() == before
  for content in (b'{"images": [', b'{"image": "a.png", "text": "b"}', b'a,b\n1,2\n', b'[1]\n{"image": "'):
    (tmp_path / 'r').write_bytes(content)
    line = refused('--image', image, '--text=red', '--no-pictures', f'--json={tmp_path / "r"}')
    assert 'not a result of this command' in line and (tmp_path / 'r').read_bytes() == content
  prompts = prompt_file(tmp_path / 'p', {'image': image, 'text': 'red'})
  assert 'this is the prompts file' in refused(prompts, '--no-pictures', f'--json={tmp_path / "p"}')


def test_two_processes_do_not_write_one_file(tmp_path, image):
  import fcntl

  with open(tmp_path / 'r', 'ab') as other:
    fcntl.flock(other, fcntl.LOCK_EX)
    assert 'another process' in refused('--image', image, '--text=red', '--no-pictures', f'--json={tmp_path / "r"}')


def test_output_that_cannot_be_written(tmp_path, image, capsys):
  for output in (image, f'{image}/folder'):
    assert '--output' in refused('--image', image, '--text=red', f'--output={output}')
    assert '--json' in refused('--image', image, '--text=red', f'--json={output}/r', '--no-pictures')
  assert '--json' in refused('--image', image, '--text=red', f'--json={tmp_path}', '--no-pictures')
  (tmp_path / 'out' / 'scene.red.overlay.png').mkdir(parents=True)
  assert predict.main(['--image', image, '--text=red', '--text=blue', f'--output={tmp_path / "out"}']) == 2
  printed = capsys.readouterr()
  assert 'scene.red.overlay.png' in printed.err and "'blue'" in printed.out and "'red'" not in printed.out


def test_a_full_disk_ends_the_job_at_once(tmp_path, monkeypatch):
  for i in range(300):
    saved(tmp_path / 'in' / f'{i}.png')

  def full(*arguments, **options):
    error = UserError('cannot write')
    error.__cause__ = OSError(28, 'No space left on device')
    raise error

  monkeypatch.setattr('ditsam_jax.jobs.outputs.write_png', full)
  with pytest.raises(UserError, match='rerun the command to resume'):
    predict.main([f'--image={tmp_path / "in"}', '--text=red', f'--output={tmp_path / "out"}'])
  assert len(BrightSegmenter.made[0].asked) < 200


def test_options_that_do_not_go_together(tmp_path, image):
  prompts = prompt_file(tmp_path / 'p', {'image': image, 'text': 'red'})
  for arguments, expected in (
    ([], 'no images'),
    (['--text=red'], 'no images'),
    (['--image', image], 'nothing to segment'),
    (['--image', image, '--text= '], 'nothing to read'),
    (['--image', image, '--text=x', '--no-pictures'], 'nothing would be written'),
    (['--image', image, '--text=x', '--batch-size=0'], '--batch-size=0'),
    (['--image', image, '--text=x', '--images-dir=.'], '--images-dir without --prompts'),
    (['--image', image, '--box=1,2,3,4', '--box=1,2,3,4'], '--box given twice'),
    (['--image', image, '--box=1,2,3'], '--box=1,2,3: expected x0,y0,x1,y1'),
    (['--image', image, '--box=3,3,1,1'], 'x0 <= x1'),
    (['--image', image, '--point=1'], '--point=1: expected x,y'),
    (['--image', image, '--point=1,b'], '--point=1,b: expected x,y'),
    (['--image', image, '--point=1,2,3'], 'label 3'),
    (['--image', image, '--point=nan,2'], 'NaN'),
    (['--image', image, '--text=x', '--checkpoint=sam_shapes'], 'no text encoder'),
    (['--image', image, '--text=x', '--checkpoint=elsewhere'], "'elsewhere' does not exist"),
    ([prompts, '--text=x'], '--prompts with --text'),
    ([prompts, '--images-dir=nowhere'], '--images-dir=nowhere'),
    (['--prompts=nothing.jsonl'], 'No such file'),
    (['--prompts=/dev/null'], 'not a file'),
    (['--prompts=-'], 'name a file'),
    (['--image', image, '--text=x', '--output=gs://bucket/out'], 'gs:// is not supported'),
    (['--image=s3://bucket/a.png', '--text=x'], 's3:// is not supported'),
  ):
    assert expected in refused(*arguments), arguments


def test_wrong_flags_are_one_line(capsys):
  for arguments in (['--imag=x'], ['--batch-size=many'], ['--dtype=int8'], ['--image']):
    with pytest.raises(SystemExit) as caught:
      predict.main(arguments)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('error: ') and '--help' in line


def test_progress_where_there_is_no_terminal(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(terminal._Lines, 'INTERVAL', -1)
  for name in 'abc':
    saved(tmp_path / f'{name}.png')
  assert predict.main([f'--image={tmp_path}', '--text=red', '--no-pictures', f'--json={tmp_path / "r"}']) == 0
  *lines, summary = capsys.readouterr().err.splitlines()
  assert lines[:2] == ['predict: 1 of 3 results', 'predict: 2 of 3 results, 0:00:00 left'] and len(lines) == 3
  assert summary.startswith('3 results in ') and summary.endswith(' a second): 3 found nothing')


def test_names_cannot_forge_lines(tmp_path, capsys):
  image = saved(tmp_path / 'x\nerror: pwned.png')
  (tmp_path / 'bad\nerror: pwned.png').write_text('no image')
  assert predict.main([f'--image={tmp_path}', '--text=red', f'--output={tmp_path / "out"}']) == 2
  printed = capsys.readouterr()
  assert os.path.exists(image) and 'x\\nerror: pwned.png' in printed.out
  assert not any(line.startswith('error: pwned') for line in (printed.out + printed.err).splitlines())


def test_memory_does_not_grow_with_the_job(tmp_path, monkeypatch):
  """Reading ahead and writing behind are bounded, however far apart they are."""
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


@pytest.mark.multiprocess
def test_the_process_ends_with_status_2_and_one_line(tmp_path, image):
  command = [sys.executable, '-m', 'ditsam_jax.predict', '--image', image, '--text=red']
  run = subprocess.run(
    [*command, f'--checkpoint={tmp_path / "no_model"}', f'--output={tmp_path / "out"}'],
    cwd=Path(__file__).parents[1],
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    check=False,
  )
  assert run.returncode == 2 and run.stdout == ''
  (line,) = run.stderr.splitlines()
  assert line.startswith('error: ') and 'no_model' in line
