"""Failures: one line for each, and the other requests are still done."""

import os
from pathlib import Path

import pytest

from ditsam_jax import predict
from ditsam_jax.errors import UserError
from tests.predict.command import BrightSegmenter, prompt_file, refused, saved


def test_bad_images_are_listed_at_the_end_and_the_rest_is_done(tmp_path, image, capsys):
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


def test_a_long_list_of_failures_is_cut_with_a_count(tmp_path, capsys):
  rows = [{'image': f'{i}.png', 'text': 'x'} for i in range(50)]
  assert predict.main([prompt_file(tmp_path / 'p', *rows), f'--output={tmp_path / "out"}']) == 2
  errors = capsys.readouterr().err.splitlines()[1:]
  assert len(errors) == 21 and 'p line 1:' in errors[0] and '30 more' in errors[-1]


def test_points_and_boxes_outside_the_image_fail(tmp_path, image, capsys):
  for wrong in ('--point=21,3', '--point=3,-1', '--box=30,1,40,5'):
    assert predict.main(['--image', image, wrong, f'--output={tmp_path / "out"}']) == 2
    assert 'outside the image, 20 x 10 pixels' in capsys.readouterr().err
  assert predict.main(['--image', image, '--point=20,10', '--box=-1,-1,21,11', f'--output={tmp_path / "out"}']) == 0


def test_unknown_and_truncated_words_are_warned_about(tmp_path, image, capsys):
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


def test_invalid_and_conflicting_options_are_refused(tmp_path, image):
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


def test_unknown_flags_and_values_print_one_line(capsys):
  for arguments in (['--imag=x'], ['--batch-size=many'], ['--dtype=int8'], ['--image']):
    with pytest.raises(SystemExit) as caught:
      predict.main(arguments)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('error: ') and '--help' in line
