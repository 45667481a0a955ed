"""Writes everything found in an image: masks in the format of Meta's amg.py, a picture, and a JSON line."""

import csv
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ditsam_jax.errors import UserError
from ditsam_jax.geometry.masks import decode_rle
from ditsam_jax.inference.everything_pictures import draw_everything
from ditsam_jax.inference.prompts import in_words
from ditsam_jax.jobs.file_names import METADATA, OVERLAY
from ditsam_jax.jobs.outputs import NOTES, ResultFiles, Written
from ditsam_jax.jobs.requests import Request, described
from ditsam_jax.storage.files import UNFINISHED, read_json, write_json
from ditsam_jax.storage.image_files import write_png
from ditsam_jax.terminal import printable

Records = list[dict[str, Any]]  # of SamAutomaticMaskGenerator, with COCO's run lengths

_COLUMNS = (
  'id,area,bbox_x0,bbox_y0,bbox_w,bbox_h,point_input_x,point_input_y,predicted_iou,stability_score,'
  'crop_box_x0,crop_box_y0,crop_box_w,crop_box_h'
).split(',')
_KEYS = {'segmentation', 'area', 'bbox', 'predicted_iou', 'point_coords', 'stability_score', 'crop_box'}  # of a record
_MASKS = re.compile(rf'{re.escape(METADATA)}|\d+\.png|{UNFINISHED}')
_LARGEST = 2**31  # bytes of a file of run lengths


class Everything(NamedTuple):
  """An image, uint8 [h, w, 3], the records of its masks, and what was not read of the phrase, see Prediction."""

  image: np.ndarray
  records: Records
  unknown: tuple[str, ...] = ()
  cut: str = ''


class EverythingFiles(ResultFiles):
  """Writes results; several threads may share one.

  Besides the picture, writes a folder of masks, 0.png, ... with metadata.csv, or a file of run lengths.
  """

  last = OVERLAY

  def __init__(
    self, file_of: Callable[[Request], Path] | None, made_by: dict[str, Any], *, convert_to_rle: bool
  ) -> None:
    """`file_of` returns the path of a request's files without suffix; None writes no files."""
    super().__init__(file_of, made_by)
    self.others = ('.json',) if convert_to_rle else (f'/{METADATA}',)
    self._convert_to_rle = convert_to_rle

  def write(self, request: Request, found: Everything) -> Written:
    """Writes the files. Raises UserError, or OutputLost if later results would fail too."""
    notes, stem = self.notes(request), self.free_place(request)
    records = [_as_json(record) for record in found.records]
    picture = None if stem is None else Path(f'{stem}{OVERLAY}')
    if stem is not None and picture is not None:
      with self.writing():
        file, write = (Path(f'{stem}.json'), _write_run_lengths) if self._convert_to_rle else (stem, _write_masks)
        try:
          write(file, records)
        except OSError as error:
          raise UserError(f'cannot write {printable(file)}: {error.strerror}; choose another output') from error
        pixels = draw_everything(found.image, found.records, in_words(request.prompt))
        write_png(picture, pixels, notes={NOTES: json.dumps(notes)})
    row = {'image': request.name, 'id': request.id, 'prompt': described(request.prompt), 'masks': records}
    if request.prompt.text is not None:
      row |= {'unknown': list(found.unknown), 'cut': found.cut}
    if picture is not None:
      row['overlay'] = str(picture)
    line = json.dumps(row | notes) + '\n'
    summary = _summary(request, found.records, picture)
    return Written(request, line.encode(), summary, not found.records, found.unknown, found.cut)


def _as_json(record: dict[str, Any]) -> dict[str, Any]:
  """Replaces NaN, the stability of an empty mask, by None: JSON has no NaN."""
  stability = record['stability_score']
  return record | {'stability_score': stability if math.isfinite(stability) else None}


def _write_run_lengths(file: Path, records: Records) -> None:
  if os.path.lexists(file) and not _are_run_lengths(file):
    raise UserError(f'{printable(file)} exists, but holds no masks; choose another --output, or move it away')
  file.parent.mkdir(parents=True, exist_ok=True)
  write_json(file, records)


def _write_masks(folder: Path, records: Records) -> None:
  """Writes a folder of masks with metadata atomically, in the format of Meta's amg.py."""
  unfinished = Path(f'{folder}.unfinished')
  for place in (folder, unfinished):
    if place.is_dir() and not _are_masks(place, whole=place == folder):
      raise UserError(
        f'{printable(place)} exists, but is no folder of masks ({METADATA} and numbered PNG files only); '
        f'choose another --output, or move it away'
      )
  shutil.rmtree(unfinished, ignore_errors=True)
  unfinished.mkdir(parents=True)
  for number, record in enumerate(records):
    write_png(unfinished / f'{number}.png', decode_rle(record['segmentation']))
  with open(unfinished / METADATA, 'w', newline='', encoding='utf-8') as file:
    table = csv.writer(file, lineterminator='\n')
    table.writerow(_COLUMNS)
    for number, record in enumerate(records):
      row = [number, record['area'], *record['bbox'], *record['point_coords'][0]]
      table.writerow([*row, record['predicted_iou'], record['stability_score'], *record['crop_box']])
  shutil.rmtree(folder, ignore_errors=True)
  os.replace(unfinished, folder)


def _are_run_lengths(file: Path) -> bool:
  """Whether a file holds records as this command writes them."""
  try:
    content = read_json(file, most_bytes=_LARGEST, finite=False)
  except UserError:
    return False
  return isinstance(content, list) and all(isinstance(record, dict) and record.keys() == _KEYS for record in content)


def _are_masks(folder: Path, *, whole: bool) -> bool:
  """Whether a folder holds nothing but masks and their metadata, which may be missing unless it is `whole`."""
  if not all(_MASKS.fullmatch(name) for name in os.listdir(folder)):
    return False
  if not whole:
    return True
  try:
    with open(folder / METADATA, encoding='utf-8', errors='replace') as file:
      return next(csv.reader(file), None) == _COLUMNS
  except (FileNotFoundError, csv.Error):
    return False


def _summary(request: Request, records: Records, picture: Path | None) -> str:
  count = f'{len(records):,} mask{"" if len(records) == 1 else "s"}' if records else 'nothing found'
  where = '' if picture is None else f' -> {printable(picture)}'
  return f'{printable(request.name)}: {in_words(request.prompt)}: {count}{where}'
