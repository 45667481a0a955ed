"""Writes a prediction: mask, overlay, and a line of JSON."""

import errno
import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ditsam_jax.errors import UserError
from ditsam_jax.inference.results import Prediction
from ditsam_jax.jobs.file_names import MASK, OVERLAY
from ditsam_jax.jobs.json_lines import differing
from ditsam_jax.jobs.requests import Request, described, in_words
from ditsam_jax.storage.description import read_description
from ditsam_jax.storage.image_files import write_photo_png, write_png
from ditsam_jax.storage.places import resolve
from ditsam_jax.terminal import printable

_NOTES = 'ditsam_jax'  # PNG text chunk that identifies the request of a mask
_HASHED = 2**24  # bytes; larger files are identified by size and modification time


class OutputLost(UserError):
  """No further results can be written: the disk is full or read-only."""


@dataclass(frozen=True)
class Written:
  """What to report about a result after its files have been written."""

  request: Request
  json_line: bytes
  summary: str
  is_empty: bool
  unknown: tuple[str, ...]
  cut: str


class Output:
  """Writes results; several threads may share one."""

  def __init__(self, file_of: Callable[[Request], Path] | None, made_by: dict[str, Any]) -> None:
    """`file_of` returns the path of a request's pictures without suffix; None writes no pictures."""
    self._file_of, self._made_by = file_of, made_by

  def write(self, request: Request, prediction: Prediction) -> Written:
    """Writes the pictures. Raises UserError, or OutputLost if all further results would fail too."""
    mask_file = None
    notes = {'key': f'{request.key():016x}', 'made_by': self._made_by}
    if self._file_of is not None:
      stem = self._file_of(request)
      mask_file = Path(f'{stem}{MASK}')
      self._check_free(mask_file, notes['key'])
      self._write_pictures(stem, prediction, notes)
    line = json.dumps(_row(request, prediction, mask_file) | notes) + '\n'
    return Written(
      request,
      line.encode(),
      _summary(request, prediction, mask_file),
      prediction.area == 0,
      tuple(prediction.unknown),
      prediction.cut,
    )

  def is_done(self, request: Request) -> bool:
    """Whether the pictures of this request exist.

    Raises:
      UserError: other files have these names, or the pictures were made in another way.
    """
    if self._file_of is None:
      return False
    stem = self._file_of(request)
    mask_file = Path(f'{stem}{MASK}')
    notes = self._check_free(mask_file, f'{request.key():016x}')
    if notes is None:
      return False
    if notes['made_by'] != self._made_by:
      difference = differing(notes['made_by'], self._made_by)
      raise UserError(f'{printable(mask_file)} was made with {difference}; choose another --output')
    return os.path.exists(f'{stem}{OVERLAY}')

  def _check_free(self, mask_file: Path, key: str) -> dict[str, Any] | None:
    """Returns the notes of this request's mask, or None if there is no file. Raises UserError if it is another file."""
    if not os.path.lexists(mask_file):
      return None
    notes = _notes(mask_file)
    if notes is None or notes['key'] != key:
      raise UserError(
        f'{printable(mask_file)} exists, but is not of this image and prompt; choose another --output, or move it away'
      )
    return notes

  def _write_pictures(self, stem: Path, prediction: Prediction, notes: dict[str, Any]) -> None:
    try:
      write_photo_png(f'{stem}{OVERLAY}', np.asarray(prediction.overlay()))
      write_png(f'{stem}{MASK}', prediction.mask, notes={_NOTES: json.dumps(notes)})  # last, so both exist
    except UserError as error:
      if getattr(error.__cause__, 'errno', None) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        raise OutputLost(f'{error}; rerun the command to resume') from error
      raise


def made_by(checkpoint: str, dtype: str, multimask: bool) -> dict[str, Any]:
  """Identifies the model and options that results are made with. Raises UserError if the model cannot be read."""
  description, folder = read_description(checkpoint), resolve(checkpoint)
  parts: list[Any] = [description['model'], description.get('files')]
  if not parts[1]:  # a model saved without checksums, by an earlier version
    for file in sorted(path for path in folder.rglob('*') if path.is_file()):
      size, time = file.stat().st_size, file.stat().st_mtime_ns
      content = hashlib.sha256(file.read_bytes()).hexdigest() if size <= _HASHED else time
      parts.append([str(file.relative_to(folder)), size, content])
  model = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
  return {'model': model[:12], 'dtype': dtype, 'multimask': multimask}


def _notes(file: Path) -> dict[str, Any] | None:
  """The notes that `write` stored in a mask; None for any other file."""
  try:
    with Image.open(file, formats=('PNG',)) as image:
      notes = json.loads(image.info[_NOTES])
      return notes if isinstance(notes['key'], str) and 'made_by' in notes else None
  except (OSError, ValueError, KeyError, TypeError, SyntaxError, RecursionError, Image.DecompressionBombError):
    return None


def _row(request: Request, prediction: Prediction, mask_file: Path | None) -> dict[str, Any]:
  scores = [_finite(score) for score in prediction.scores.tolist()]
  row = {'image': request.name, 'id': request.id, 'prompt': described(request.prompt)}
  row |= {'score': scores[prediction.best], 'area': prediction.area, 'box': prediction.box, 'rle': prediction.rle()}
  if request.prompt.multimask:
    rest = zip(scores, prediction.areas, prediction.boxes, prediction.rles())
    row['candidates'] = [{'score': score, 'area': area, 'box': box, 'rle': rle} for score, area, box, rle in rest]
  row |= {'unknown': list(prediction.unknown), 'cut': prediction.cut}
  return row if mask_file is None else row | {'mask': str(mask_file)}


def _finite(score: float) -> float | None:
  return round(score, 6) if math.isfinite(score) else None  # JSON has no NaN


def _summary(request: Request, prediction: Prediction, mask_file: Path | None) -> str:
  share = 100 * prediction.area / prediction.mask.size
  found = f'{prediction.area} pixels ({share:.1f} %)' if prediction.area else 'nothing found'
  where = '' if mask_file is None else f' -> {printable(mask_file)}'
  name = printable(request.name)
  return f'{name}: {in_words(request.prompt)}: {found}, predicted IoU {prediction.score:.2f}{where}'
