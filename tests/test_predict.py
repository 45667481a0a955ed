"""The command: files for every image and text, one line for whatever is wrong, and the rest still done."""

import itertools
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ditsam_jax import predict
from ditsam_jax.errors import UserError
from ditsam_jax.inference.prompts import Prompt
from ditsam_jax.inference.results import Prediction


class BrightSegmenter:
  """Takes bright pixels for the object, and reads two words."""

  def __init__(self, checkpoint, *, batch_size):
    if checkpoint != 'shapes':
      raise UserError(f'{checkpoint}: no model here')
    self.batch_size = batch_size
    self.config = SimpleNamespace(max_text_tokens=4)
    self.tokenizer = SimpleNamespace(cut=lambda text: ' '.join(text.split()[2:]))

  def stream(self, pairs):
    for image, text in pairs:
      mask = image[..., 0] > 127
      logits = np.where(mask, 9.0, -9.0)[None]
      yield Prediction(Prompt(text), image, mask[None], np.array([0.876]), logits, logits, self.tokenizer.cut(text))


@pytest.fixture(autouse=True)
def bright_segmenter(monkeypatch):
  monkeypatch.setattr(predict, 'Segmenter', BrightSegmenter)


@pytest.fixture
def image(tmp_path):
  pixels = np.zeros((10, 20, 3), np.uint8)
  pixels[2:6, 5:15] = 255
  return saved(tmp_path / 'scene.png', pixels)


def saved(path, pixels):
  path.parent.mkdir(exist_ok=True, parents=True)
  Image.fromarray(pixels).save(path)
  return str(path)


def test_writes_mask_and_overlay_and_says_so(tmp_path, image, capsys):
  output = tmp_path / 'new' / 'output'
  assert predict.main(['--image', image, '--text=the red circle', f'--output={output}']) == 0
  assert sorted(os.listdir(output)) == ['scene.the-red-circle.mask.png', 'scene.the-red-circle.overlay.png']
  mask = np.asarray(Image.open(output / 'scene.the-red-circle.mask.png'))
  assert mask.shape == (10, 20) and (mask[2:6, 5:15] == 255).all() and mask.sum() == 40 * 255
  assert Image.open(output / 'scene.the-red-circle.overlay.png').size == (20, 10)
  (line,) = capsys.readouterr().out.splitlines()
  mask_file = output / 'scene.the-red-circle.mask.png'
  assert line == f"{image}: 'the red circle': 40 pixels (20.0 %), predicted IoU 0.88 -> {mask_file}"


def test_every_image_with_every_text(tmp_path, capsys):
  images = [saved(tmp_path / f'{name}.png', np.zeros((4, 4, 3), np.uint8)) for name in 'abc']
  arguments = ['--image', images[0], images[1], f'--image={images[2]}', '--text=one', '--text=two']
  assert predict.main([*arguments, f'--output={tmp_path / "out"}']) == 0
  parts = itertools.product('abc', ('one', 'two'), ('mask', 'overlay'))
  assert set(os.listdir(tmp_path / 'out')) == {'.'.join(name) + '.png' for name in parts}
  assert len(capsys.readouterr().out.splitlines()) == 6


def test_bad_images_and_texts_are_told_and_the_others_done(tmp_path, image, capsys):
  (tmp_path / 'text.png').write_text('no image')
  bad = [str(tmp_path / 'missing.png'), str(tmp_path / 'text.png'), str(tmp_path)]
  arguments = ['--image', *bad, image, '--text=', '--text=red', f'--output={tmp_path / "out"}']
  assert predict.main(arguments) == 2
  printed = capsys.readouterr()
  assert len(printed.out.splitlines()) == 1 and len(os.listdir(tmp_path / 'out')) == 2
  errors = printed.err.splitlines()
  assert len(errors) == 4 and all(line.startswith('error: ') for line in errors)
  assert "text ''" in errors[0]
  assert all(repr(path) in line for path, line in zip(bad, errors[1:]))


def test_words_beyond_the_tokens_are_a_warning(tmp_path, image, capsys):
  assert predict.main(['--image', image, '--text=big red round thing', f'--output={tmp_path / "out"}']) == 0
  printed = capsys.readouterr()
  assert printed.err.splitlines() == [
    "warning: text 'big red round thing': does not fit in 4 tokens; left out: 'round thing'"
  ]
  assert len(printed.out.splitlines()) == 1


def test_results_never_share_a_file(tmp_path):
  pixels = np.zeros((4, 4, 3), np.uint8)
  names = ('x y.png', 'x-y.png', 'X-y.png')
  images = [saved(tmp_path / folder / name, pixels) for folder in 'ab' for name in names]
  texts = ['the cup', 'the cup?', 'The/cup', '../the cup']
  arguments = ['--image', *images, *[f'--text={text}' for text in texts], f'--output={tmp_path / "out"}']
  assert predict.main(arguments) == 0
  files = os.listdir(tmp_path / 'out')
  assert len({name.casefold() for name in files}) == len(files) == 6 * 4 * 2
  assert not any('/' in name or name.startswith('.') for name in files)


def test_names_stay_within_what_file_systems_allow(tmp_path):
  image = saved(tmp_path / ('n' * 240 + '.png'), np.zeros((4, 4, 3), np.uint8))
  texts = ['word ' * 200, 'кружка ' * 100, '???']
  arguments = ['--image', image, *[f'--text={text}' for text in texts], f'--output={tmp_path / "out"}']
  assert predict.main(arguments) == 0
  assert len(os.listdir(tmp_path / 'out')) == 6


def test_an_input_in_the_output_folder_is_not_overwritten(tmp_path, capsys):
  name = 'cup.red.mask.png'
  pixels = np.full((4, 4, 3), 77, np.uint8)
  image, twin = saved(tmp_path / 'cup.png', pixels), saved(tmp_path / name, pixels)
  assert predict.main(['--image', image, twin, '--text=red', f'--output={tmp_path}']) == 0
  assert np.asarray(Image.open(twin)).tolist() == pixels.tolist()
  assert (tmp_path / 'cup.red-2.mask.png').exists()


def test_an_image_given_twice_is_done_once(tmp_path, image, capsys):
  assert predict.main(['--image', image, image, '--text=a', '--text=a', f'--output={tmp_path / "out"}']) == 0
  assert len(capsys.readouterr().out.splitlines()) == 1


def test_output_that_cannot_be_written(tmp_path, image, capsys):
  for output in (image, f'{image}/folder'):
    with pytest.raises(UserError, match='--output'):
      predict.main(['--image', image, '--text=red', f'--output={output}'])
  (tmp_path / 'out' / 'scene.red.mask.png').mkdir(parents=True)
  assert predict.main(['--image', image, '--text=red', '--text=blue', f'--output={tmp_path / "out"}']) == 2
  printed = capsys.readouterr()
  assert len(printed.err.splitlines()) == 1 and 'scene.red.mask.png' in printed.err
  assert 'blue' in printed.out


def test_a_missing_checkpoint_is_an_error(tmp_path, image):
  with pytest.raises(UserError, match='elsewhere'):
    predict.main(['--image', image, '--text=red', '--checkpoint=elsewhere', f'--output={tmp_path}'])


def test_missing_arguments_are_told_by_argparse(capsys):
  for arguments in ([], ['--text=red'], ['--image', '--text=red'], ['--image', 'a.png']):
    with pytest.raises(SystemExit) as caught:
      predict.main(arguments)
    assert caught.value.code == 2
  assert '--text' in capsys.readouterr().err


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
