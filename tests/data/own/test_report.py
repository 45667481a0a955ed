"""The report and the preview describe the data and point out likely mistakes."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from ditsam_jax import prepare
from ditsam_jax.data.own import builder
from ditsam_jax.data.own.preview import SAMPLES
from ditsam_jax.drawing.overlays import PREDICTION_COLOUR
from ditsam_jax.errors import UserError
from tests.data.own.pictures import make, polygon


@pytest.fixture
def own(tmp_path):
  return make(tmp_path)


def row(own, index, **more):
  mask = polygon(own.masks[f'{index}.png'])
  split = ('train', 'train', 'train', 'val', 'val', 'test')[index]
  return {'image': f'{index}.png', 'text': f'the box {index}', 'mask': mask, 'split': split, **more}


def report(own, rows, **options):
  shown = []
  file = own.write_lines(rows)
  data_dir = own.root / 'data'
  builder.prepare('mine', file, own.photos, data_dir, processes=0, check_only=True, show=shown.append, **options)
  assert all(line.isprintable() for line in shown)
  return shown


def one(lines, start):
  (line,) = [line for line in lines if line.startswith(start)]
  return line


def test_figures(own):
  rows = [row(own, 0), row(own, 1, text=['a b c', 'the red circle']), row(own, 2, mask=None), row(own, 3), row(own, 5)]
  lines = report(own, rows)
  assert one(lines, 'images: ') == 'images: 5, from 50 x 50 to 80 x 40 pixels'
  shares = [100 * own.masks[f'{index}.png'].mean() for index in (0, 1, 3, 5)]
  assert f'{min(shares):.3g} to {max(shares):.3g} % of the image' in one(lines, 'masks: ')
  assert one(lines, 'masks: ').endswith('; no target (null): 1')
  assert one(lines, 'sentences: ') == 'sentences: 6, 6 different, 3 words'
  assert not [line for line in lines if line.startswith('warning')]
  assert (own.root / 'data' / 'mine' / 'report.txt').read_text().splitlines() == lines[:-1]


def test_the_report_uses_the_tokenizer_of_the_model(own):
  long = 'the red circle left of the blue square right of the large green star above the cross'
  lines = report(own, [row(own, 0, text=['the kettle', long]), row(own, 3, text='a Kettle'), row(own, 5)])
  line = one(lines, "sentences cut at the 16 tokens of 'shapes': 1 (")
  assert "line 1 (0.png) ('" in line and "('above the cross')" in line
  assert 'kettle (2)' in one(lines, "words missing from the vocabulary of 'shapes'")
  with pytest.raises(UserError, match='takes no text'):
    report(own, [row(own, 0)], model='sam_shapes')


def test_identical_images_in_several_splits_are_found_by_their_pixels(own):
  Image.open(own.photos / '0.png').save(own.photos / 'copy.bmp')
  lines = report(own, [row(own, 0), row(own, 0, image='copy.bmp', split='val'), row(own, 1), row(own, 1, split='test')])
  line = one(lines, 'warning: identical images in several splits, so evaluation may see training images: 2 (')
  assert '0.png, copy.bmp in train, val' in line and '1.png in test, train' in line
  assert one(lines, 'warning: identical images under different names: 1')


def test_random_splits_keep_copies_of_an_image_together(own):
  for index in range(6):
    (own.photos / f'copy {index}.png').write_bytes((own.photos / f'{index}.png').read_bytes())
  rows = [
    row(own, index, split=None, image=name) for index in range(6) for name in (f'{index}.png', f'copy {index}.png')
  ]
  lines = report(own, rows)
  assert not [line for line in lines if 'several splits' in line]
  assert one(lines, 'warning: identical images under different names: 6')


def test_masks_that_look_like_mistakes(own):
  height, width = own.masks['0.png'].shape
  Image.fromarray(np.zeros((height, width), np.uint8)).save(own.root / 'empty.png')
  nearly = own.masks['0.png'].copy()
  nearly[:5] = False  # removes one of twelve rows
  rows = [
    row(own, 0),
    row(own, 0, text='something else'),
    row(own, 0, text='a third', mask=polygon(nearly)),
    row(own, 0, mask='empty.png', text='nothing'),
    row(own, 0, mask=[[0, 0, width, 0, width, height, 0, height]], text='all'),
    row(own, 3),
    row(own, 3, text='The  BOX 3', mask=[[1, 1, 9, 1, 9, 9]]),
    row(own, 3, text='the box 3', mask=None),
  ]
  lines = report(own, rows)
  assert 'line 4 (0.png)' in one(lines, 'warning: empty masks, treated as no target (null): 1 (')
  assert 'line 5 (0.png)' in one(lines, 'warning: masks that cover the whole image: 1 (')
  assert one(lines, 'warning: pairs of nearly equal masks').endswith(': 1 (line 1 (0.png) and line 2)')
  ambiguous = one(lines, 'warning: sentences used for different masks of one image: 2 (')
  assert "'the box 3' in line 6 (3.png) and line 7" in ambiguous


def test_images_whose_size_does_not_show_their_orientation_are_counted(own):
  tags = Image.Exif()
  tags[0x0112] = 3  # upside down
  for index in (0, 1):
    Image.fromarray(own.pixels[f'{index}.png']).save(own.photos / f'{index}.jpg', exif=tags)
  sizes = [own.masks[f'{index}.png'].shape for index in (0, 1)]
  images = [{'id': i, 'file_name': f'{i}.jpg', 'height': h, 'width': w} for i, (h, w) in enumerate(sizes)]
  del images[1]['width']  # no size: masks must match the rotated image
  masks = [polygon(own.masks[f'{index}.png']) for index in (0, 1)]
  annotations = [{'image_id': i, 'segmentation': mask, 'caption': 'a box'} for i, mask in enumerate(masks)]
  file, shown = own.root / 'instances.json', []
  file.write_text(json.dumps({'images': images, 'annotations': annotations}))
  builder.prepare('mine', file, own.photos, own.root / 'data', processes=0, check_only=True, show=shown.append)
  assert one(shown, 'warning: images with EXIF').endswith('; rotated here: 1 (annotation 0 (0.jpg))')


def test_missing_splits_are_named(own):
  lines = report(own, [row(own, 5)])
  assert one(lines, "warning: no split 'train', required for training; found: test")
  assert one(lines, "warning: no split 'val', required for evaluation during training")


def test_problems_are_shown_together_with_a_report_of_the_good_data(own, capsys):
  file = own.write_lines([row(own, 0), row(own, 1, image='nowhere.png')])
  with pytest.raises(UserError, match=r'1 problem\)'):
    prepare.main(own.arguments(file, '--check'))
  out, err = capsys.readouterr()
  assert 'sentences: 1' in out and 'nowhere.png (line 2)' in err
  assert sorted(path.name for path in (own.root / 'data').rglob('*')) == ['mine', 'preview.png', 'report.txt']


def test_the_preview_shows_pictures_with_their_masks(own):
  report(own, [row(own, index) for index in range(6)] + [row(own, 2, mask=None, text='nowhere')])
  sheet = cv2.imread(str(own.root / 'data' / 'mine' / 'preview.png'))[..., ::-1]
  cards = 7
  assert sheet.shape[1] == 3 * (484 + 16) + 16  # three columns
  outlines = (np.abs(sheet.astype(int) - PREDICTION_COLOUR).max(-1) < 10).astype(np.uint8)
  spots = cv2.connectedComponents(cv2.dilate(outlines, np.ones((15, 15), np.uint8)))[0] - 1
  assert spots == cards - 1  # no outline without a target


def test_the_preview_samples_splits_evenly_whatever_their_size(own):
  rows = [row(own, 0, text=f'train {index}') for index in range(100)] + [row(own, 3), row(own, 4), row(own, 5)]
  plans = []
  original = builder.Preview.sheet

  def spy(preview):
    plans.append({split: len(drawn.kept) for split, drawn in preview._drawn.items()})
    return original(preview)

  builder.Preview.sheet = spy
  try:
    report(own, rows)
  finally:
    builder.Preview.sheet = original
  assert plans == [{'train': SAMPLES, 'val': 2, 'test': 1}]
