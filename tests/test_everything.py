"""The everything command: files in the format of Meta's amg.py, one-line errors, and resuming."""

import csv
import errno
import json
import math
import os

import numpy as np
import pytest
from PIL import Image

from ditsam_jax import everything, terminal
from ditsam_jax.errors import UserError
from ditsam_jax.geometry.masks import decode_rle, encode_rle
from ditsam_jax.inference.everything_pictures import colour_of, draw_everything
from ditsam_jax.inference.segmenter import load_with_tokenizer
from ditsam_jax.jobs import everything_files
from ditsam_jax.jobs.file_names import is_result
from ditsam_jax.jobs.outputs import OutputLost
from ditsam_jax.models.config import tiny
from ditsam_jax.storage import saved_model
from ditsam_jax.storage.files import parse_json
from tests.small_models import random_model


class QuadrantGenerator:
  """Finds the upper half and the left quarter of every image; with text, only the quarter."""

  made: list['QuadrantGenerator'] = []
  interrupt_after = None

  def __init__(self, checkpoint, *, output_mode, dtype, **settings):
    assert output_mode == 'coco_rle'
    self.settings, self.asked = settings, []
    _, self.tokenizer = load_with_tokenizer(settings['text_model'] or checkpoint, dtype)
    self.made.append(self)

  def stream(self, requests):
    for image, text in requests:
      if len(self.asked) == self.interrupt_after:
        raise KeyboardInterrupt
      self.asked.append(text)
      half, quarter = np.zeros((2, *image.shape[:2]), bool)
      half[: len(half) // 2] = True
      quarter[: len(half) // 2, : half.shape[1] // 2] = True
      yield [record_of(mask) for mask in ([quarter] if text else [half, quarter])]


def record_of(mask):
  height, width = mask.shape
  rows, columns = np.nonzero(mask)
  return {
    'segmentation': encode_rle(mask),
    'area': int(mask.sum()),
    'bbox': [0, 0, int(columns.max()), int(rows.max())],
    'predicted_iou': 0.9,
    'point_coords': [[1.5, 2.0]],
    'stability_score': 0.97,
    'crop_box': [0, 0, width, height],
  }


@pytest.fixture(autouse=True)
def quadrant_generator(monkeypatch):
  monkeypatch.setattr(everything, 'SamAutomaticMaskGenerator', QuadrantGenerator)
  monkeypatch.setattr(QuadrantGenerator, 'made', [])


@pytest.fixture
def images(tmp_path):
  folder = tmp_path / 'images'
  folder.mkdir()
  for name in ('a.png', 'b.png'):
    Image.fromarray(np.full((20, 30, 3), 200, np.uint8)).save(folder / name)
  return folder


def run(images, output, *arguments):
  return everything.main([f'--image={images}', f'--output={output}', *arguments])


def test_a_folder_of_masks_in_the_format_of_metas_amg(tmp_path, images, capsys):
  assert run(images / 'a.png', tmp_path / 'out') == 0
  assert sorted(os.listdir(tmp_path / 'out')) == ['a.everything', 'a.everything.overlay.png']
  folder = tmp_path / 'out' / 'a.everything'
  assert sorted(os.listdir(folder)) == ['0.png', '1.png', 'metadata.csv']
  half = np.asarray(Image.open(folder / '0.png'))
  assert half.shape == (20, 30) and (half[:10] == 255).all() and not half[10:].any()
  rows = list(csv.DictReader(open(folder / 'metadata.csv')))
  # The columns of Meta's script, scripts/amg.py of segment_anything 1.0.
  assert list(rows[0]) == (
    'id,area,bbox_x0,bbox_y0,bbox_w,bbox_h,point_input_x,point_input_y,predicted_iou,stability_score,'
    'crop_box_x0,crop_box_y0,crop_box_w,crop_box_h'
  ).split(',')
  assert rows[1]['area'] == '150' and rows[1]['bbox_w'] == '14' and rows[1]['point_input_x'] == '1.5'
  out = capsys.readouterr().out
  assert out == f'{images / "a.png"}: everything: 2 masks -> {tmp_path / "out" / "a.everything.overlay.png"}\n'


def test_run_lengths_instead_of_a_folder(tmp_path, images):
  assert run(images / 'a.png', tmp_path / 'out', '--convert-to-rle') == 0
  assert sorted(os.listdir(tmp_path / 'out')) == ['a.everything.json', 'a.everything.overlay.png']
  records = json.loads((tmp_path / 'out' / 'a.everything.json').read_text())
  assert [record['area'] for record in records] == [300, 150]
  assert decode_rle(records[1]['segmentation'])[:10, :15].all()


@pytest.mark.parametrize('flags', [[], ['--convert-to-rle']])
def test_files_with_an_empty_mask_are_json(tmp_path, images, monkeypatch, flags):
  def stream(generator, requests):
    for image, _ in requests:
      empty = {'segmentation': encode_rle(np.zeros(image.shape[:2], bool)), 'area': 0, 'stability_score': math.nan}
      yield [record_of(np.ones(image.shape[:2], bool)), record_of(np.ones(image.shape[:2], bool)) | empty]

  monkeypatch.setattr(QuadrantGenerator, 'stream', stream)
  assert run(images / 'a.png', tmp_path / 'out', f'--json={tmp_path / "r"}', *flags) == 0
  found = [parse_json((tmp_path / 'r').read_bytes())['masks']]
  found += [parse_json(file.read_bytes()) for file in (tmp_path / 'out').glob('*.json')]
  assert len(found) == 1 + len(flags)
  assert all([record['stability_score'] for record in records] == [0.97, None] for records in found)


def test_run_lengths_of_images_with_equal_names(tmp_path, images):
  Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(images / 'a.jpg')
  assert run(images, tmp_path / 'out', '--convert-to-rle') == 0
  assert sorted(str(file.relative_to(tmp_path / 'out')) for file in (tmp_path / 'out').rglob('*.json')) == [
    'b.everything.json',
    'images-a-jpg/everything.json',
    'images-a-png/everything.json',
  ]


@pytest.mark.parametrize('number, ends', [(errno.ENOSPC, True), (errno.ENAMETOOLONG, False)])
def test_run_lengths_that_cannot_be_written(tmp_path, images, monkeypatch, capsys, number, ends):
  """A full disk ends the job; other errors concern one image."""

  def fail(file, records):
    raise OSError(number, os.strerror(number), str(file))

  monkeypatch.setattr(everything_files, 'write_json', fail)
  if ends:
    with pytest.raises(OutputLost, match='a.everything.json: No space left .*; rerun the command to resume'):
      run(images, tmp_path / 'out', '--convert-to-rle')
  else:
    assert run(images, tmp_path / 'out', '--convert-to-rle') == 2
    assert capsys.readouterr().err.count('everything.json: File name too long; choose another output') == 2


@pytest.mark.slow
def test_a_line_per_image_and_phrase(tmp_path, images):
  lines = tmp_path / 'r.jsonl'
  assert (
    run(images, tmp_path / 'out', f'--json={lines}', '--text=the red circles', '--no-pictures', '--checkpoint=shapes')
    == 0
  )
  rows = [json.loads(line) for line in lines.read_text().splitlines()]
  assert [row['image'] for row in rows] == [str(images / 'a.png'), str(images / 'b.png')]
  assert rows[0]['prompt'] == {'text': 'the red circles'} and len(rows[0]['masks']) == 1
  assert not (tmp_path / 'out').exists()


def test_a_stopped_job_resumes(tmp_path, images, monkeypatch, capsys):
  monkeypatch.setattr(QuadrantGenerator, 'interrupt_after', 1)
  with pytest.raises(KeyboardInterrupt):
    run(images, tmp_path / 'out')
  monkeypatch.setattr(QuadrantGenerator, 'interrupt_after', None)
  first = (tmp_path / 'out' / 'a.everything.overlay.png').stat().st_mtime_ns
  assert run(images, tmp_path / 'out') == 0
  assert '1 result already done' in capsys.readouterr().err
  assert (tmp_path / 'out' / 'a.everything.overlay.png').stat().st_mtime_ns == first
  assert len(QuadrantGenerator.made[-1].asked) == 1
  assert run(images, tmp_path / 'out') == 0 and len(QuadrantGenerator.made) == 2


def test_json_lines_without_their_pictures_are_refused(tmp_path, images):
  lines = f'--json={tmp_path / "r.jsonl"}'
  run(images, tmp_path / 'out', lines)
  assert run(images, tmp_path / 'out', lines) == 0 and len(QuadrantGenerator.made) == 1
  with pytest.raises(UserError, match='r.jsonl has the result of .*a.png: .*, but its picture is not in .*new; '):
    run(images, tmp_path / 'new', lines)


def test_progress_names_the_command(tmp_path, images, monkeypatch, capsys):
  monkeypatch.setattr(terminal._Lines, 'INTERVAL', -1)
  assert run(images, tmp_path / 'out') == 0
  assert capsys.readouterr().err.startswith('everything: 1 of 2 results\n')


def test_a_missing_folder_of_masks_is_rewritten(tmp_path, images):
  run(images, tmp_path / 'out')
  os.remove(tmp_path / 'out' / 'a.everything' / 'metadata.csv')
  for name in os.listdir(tmp_path / 'out' / 'a.everything'):
    os.remove(tmp_path / 'out' / 'a.everything' / name)
  os.rmdir(tmp_path / 'out' / 'a.everything')
  assert run(images, tmp_path / 'out') == 0
  assert (tmp_path / 'out' / 'a.everything' / '1.png').exists()


def test_results_of_other_settings_are_refused(tmp_path, images):
  run(images, tmp_path / 'out', f'--json={tmp_path / "r.jsonl"}')
  with pytest.raises(UserError, match=r'points_per_side 32 \(now 16\); choose another --output'):
    run(images, tmp_path / 'out', '--points-per-side=16')
  with pytest.raises(UserError, match=r'made with convert_to_rle False \(now True\); choose another --json'):
    run(images, tmp_path / 'new', f'--json={tmp_path / "r.jsonl"}', '--convert-to-rle')


@pytest.mark.parametrize(
  ('name', 'files'),
  [
    ('a.everything', {'letter.txt': 'dear'}),
    ('a.everything', {'metadata.csv': None, '0.png': 'mine', 'letter.txt': 'dear'}),
    ('a.everything', {'metadata.csv': 'file_name,label\n0.png,cat\n', '0.png': 'mine'}),
    ('a.everything.unfinished', {'0.png': 'mine', 'letter.txt': 'dear'}),
  ],
)
def test_a_foreign_folder_is_not_replaced(tmp_path, images, capsys, name, files):
  columns = ','.join(everything_files._COLUMNS) + '\n'
  files = {file: text or columns for file, text in files.items()}
  (tmp_path / 'out' / name).mkdir(parents=True)
  for file, text in files.items():
    (tmp_path / 'out' / name / file).write_text(text)
  assert run(images, tmp_path / 'out') == 2
  assert f'{name} exists, but is no folder of masks' in capsys.readouterr().err
  assert {file.name: file.read_text() for file in (tmp_path / 'out' / name).iterdir()} == files
  assert (tmp_path / 'out' / 'b.everything.overlay.png').exists()


def test_masks_of_a_killed_process_are_replaced(tmp_path, images):
  run(images, tmp_path / 'out')
  for name in ('0.png', f'.writing-{"0" * 32}'):
    (tmp_path / 'out' / 'a.everything.unfinished').mkdir(exist_ok=True)
    (tmp_path / 'out' / 'a.everything.unfinished' / name).touch()
  (tmp_path / 'out' / 'a.everything.overlay.png').unlink()
  assert run(images, tmp_path / 'out') == 0
  assert not (tmp_path / 'out' / 'a.everything.unfinished').exists()


def test_a_foreign_json_file_is_not_replaced(tmp_path, images, capsys):
  run(images / 'b.png', tmp_path / 'out', '--convert-to-rle')
  (tmp_path / 'out' / 'b.everything.overlay.png').unlink()  # as if killed before it was written
  foreign = json.dumps([{'segmentation': [], 'label': 'cat'}])
  (tmp_path / 'out' / 'a.everything.json').write_text(foreign)
  assert run(images, tmp_path / 'out', '--convert-to-rle') == 2
  assert 'a.everything.json exists, but holds no masks; choose another --output' in capsys.readouterr().err
  assert (tmp_path / 'out' / 'a.everything.json').read_text() == foreign
  assert (tmp_path / 'out' / 'b.everything.overlay.png').exists()


def test_results_are_not_segmented_as_images(tmp_path, images):
  run(images, images / 'out')
  found = [images / 'out' / 'a.everything' / '0.png', images / 'out' / 'a.everything.overlay.png']
  assert all(is_result(str(path), images / 'out') for path in found)
  assert not is_result(str(images / 'a.png'), images / 'out')
  QuadrantGenerator.made.clear()
  assert everything.main([f'--image={images}/**/*.png', f'--output={images / "out"}']) == 0
  assert not QuadrantGenerator.made


def test_numbered_photos_beside_a_table_of_their_own_are_images(tmp_path):
  for name in ('0001.png', 'metadata.csv'):
    (tmp_path / name).touch()
  assert not is_result(str(tmp_path / '0001.png'), tmp_path)


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['--no-pictures'], '--no-pictures without --json: nothing would be written'),
    (['--no-pictures', '--json=r', '--convert-to-rle'], '--json already contains run lengths'),
    (['--points-per-side=0'], 'points_per_side 0: expected a whole number from 1'),
    (
      ['--text=the cat'],
      "--text='the cat': sam_shapes_multimask has no text encoder; use one that has: --text-checkpoint",
    ),
    (['--text=the cat', '--text-checkpoint=sam_shapes'], "--text='the cat': sam_shapes has no text encoder"),
    (['--text= ', '--text-checkpoint=shapes'], "text ' ': nothing to read"),
    (['--text-checkpoint=shapes'], '--text-checkpoint without --text: nothing to read'),
    (['--checkpoint=nowhere'], 'nowhere'),
  ],
)
def test_bad_options_are_refused_before_the_model_is_loaded(tmp_path, images, arguments, message):
  with pytest.raises(UserError, match=message):
    run(images, tmp_path / 'out', *arguments)
  assert not QuadrantGenerator.made


@pytest.mark.slow
def test_a_model_trained_with_sentences_only_is_refused(tmp_path, images):
  saved_model.save(tmp_path / 'model', random_model(tiny(text_encoder=None, fusion='none')), notes={'task': 'text'})
  with pytest.raises(UserError, match=r'model was trained with sentences only .* as text_model \(--text-checkpoint\)'):
    run(images, tmp_path / 'out', f'--checkpoint={tmp_path / "model"}')
  assert not QuadrantGenerator.made


def test_another_model_reads_the_phrases(tmp_path, images, capsys):
  arguments = [f'--json={tmp_path / "r.jsonl"}', '--no-pictures', '--text=the purple qwxz', '--text-checkpoint=shapes']
  assert run(images, tmp_path / 'out', *arguments) == 0
  assert QuadrantGenerator.made[0].settings['text_model'] == 'shapes'
  row = json.loads((tmp_path / 'r.jsonl').read_text().splitlines()[0])
  assert row['unknown'] == ['qwxz'] and row['cut'] == ''
  assert 'warning: words the model does not know: qwxz' in capsys.readouterr().err
  with pytest.raises(UserError, match=r'made with .*text_model [0-9a-f]+ \(now None\); choose another --json'):
    run(images, tmp_path / 'out', *arguments[:3], '--checkpoint=shapes')


def test_settings_reach_the_generator(tmp_path, images):
  run(images, tmp_path / 'out', '--points-per-side=7', '--pred-iou-thresh=0.5', '--min-mask-region-area=20')
  assert QuadrantGenerator.made[0].settings['points_per_side'] == 7
  assert QuadrantGenerator.made[0].settings['pred_iou_thresh'] == 0.5
  assert QuadrantGenerator.made[0].settings['min_mask_region_area'] == 20


def test_only_images_too_small_for_crops_fail(tmp_path, images, capsys):
  Image.fromarray(np.zeros((1, 9, 3), np.uint8)).save(images / 'c.png')
  assert run(images, tmp_path / 'out', '--crop-n-layers=1') == 2
  assert 'c.png: 9 x 1 pixels are too few for 1 layer of crops' in capsys.readouterr().err


def test_small_masks_are_drawn_on_top_in_different_colours():
  image = np.full((200, 300, 3), 100, np.uint8)
  big, small = np.zeros((2, 200, 300), bool)
  big[10:140, 10:290] = small[50:100, 50:100] = True
  records = [dict(segmentation=encode_rle(small), area=2500), dict(segmentation=big, area=36400)]
  picture = draw_everything(image, records, 'everything').astype(int)
  for number, (y, x) in enumerate([(120, 200), (75, 75)]):  # the largest gets the first colour
    expected = 0.3 * 100 + 0.7 * np.array(colour_of(number))
    np.testing.assert_allclose(picture[y, x], expected, atol=1)
  assert (picture[150, 5] == 55).all()
  assert (picture[-1, 5] != 55).any(), 'the caption lies where it hides no mask'
