"""Names of the output files."""

import os

import numpy as np
from PIL import Image

from ditsam_jax import predict
from tests.predict.command import saved


def test_no_two_results_share_a_file(tmp_path, capsys):
  names = ('x y.png', 'x-y.png', 'X-y.png')
  images = [saved(tmp_path / folder / name) for folder in ('a', 'b', 'c/a') for name in names]
  texts = ['the cup', 'the cup?', 'The/cup', '../the cup']
  arguments = ['--image', *images, *[f'--text={text}' for text in texts], f'--output={tmp_path / "out"}']
  assert predict.main(arguments) == 0
  files = [path.relative_to(tmp_path / 'out') for path in (tmp_path / 'out').rglob('*.png')]
  assert len({str(file).casefold() for file in files}) == len(files) == 9 * 4 * 2
  assert all(len(file.parts) == 2 and not file.name.startswith('.') for file in files)
  assert len({file.parts[0] for file in files}) == 9  # one folder per image


def test_only_images_with_repeated_stems_get_folders(tmp_path, capsys):
  images = [saved(tmp_path / name) for name in ('a/x.png', 'b/x.png', 'b/y.png')]
  assert predict.main(['--image', *images, '--text=red', f'--output={tmp_path / "out"}']) == 0
  files = sorted(str(path.relative_to(tmp_path / 'out')) for path in (tmp_path / 'out').rglob('*.mask.png'))
  assert files == ['a-x-png/red.mask.png', 'b-x-png/red.mask.png', 'y.red.mask.png']


def test_long_names_are_shortened_for_the_file_system(tmp_path):
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


def test_a_repeated_request_is_done_once_and_reported(tmp_path, image, capsys):
  again = f'{tmp_path}/./scene.png'
  assert predict.main(['--image', image, image, again, '--text=a', '--text=a', f'--output={tmp_path / "out"}']) == 0
  printed = capsys.readouterr()
  assert len(printed.out.splitlines()) == 1 and printed.err == '1 duplicate request skipped\n'
