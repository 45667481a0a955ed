"""Result files: identifies finished ones, and writes predictions as a mask, an overlay and a JSON line."""

import contextlib
import errno
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ditsam_jax.errors import UserError
from ditsam_jax.inference.prompts import in_words
from ditsam_jax.inference.results import Prediction
from ditsam_jax.jobs.file_names import MASK, OVERLAY
from ditsam_jax.jobs.json_lines import differing
from ditsam_jax.jobs.requests import Request, described
from ditsam_jax.storage.description import read_description
from ditsam_jax.storage.image_files import write_photo_png, write_png
from ditsam_jax.storage.places import resolve
from ditsam_jax.terminal import printable

NOTES = 'ditsam_jax'  # key of the PNG text that identifies a file's request
_HASHED = 2**24  # bytes; larger files are identified by size and time


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


class ResultFiles:
  """Result files. The file written last identifies, in its PNG text, the request and how the result was made."""

  last = ''  # suffix of the file written last
  others: tuple[str, ...] = ()  # suffixes of the files written before

  def __init__(self, file_of: Callable[[Request], Path] | None, made_by: dict[str, Any]) -> None:
    """`file_of` returns the path of a request's files without suffix; None writes no pictures."""
    self._file_of, self._made_by = file_of, made_by

  def is_done(self, request: Request) -> bool:
    """Returns whether the files of this request exist and were made the same way.

    Raises:
      UserError: files of another request or made differently are in their place.
    """
    if self._file_of is None:
      return False
    stem = self._file_of(request)
    return self._check_free(stem, request) and all(os.path.exists(f'{stem}{ending}') for ending in self.others)

  def notes(self, request: Request) -> dict[str, Any]:
    """Returns the identification of a result, stored in its files and in its JSON line."""
    return {'key': f'{request.key():016x}', 'made_by': self._made_by}

  def free_place(self, request: Request) -> Path | None:
    """Returns the path of a request's files without suffix; None for no files. Raises UserError if it is taken."""
    if self._file_of is None:
      return None
    stem = self._file_of(request)
    self._check_free(stem, request)
    return stem

  def _check_free(self, stem: Path, request: Request) -> bool:
    """Returns whether the file written last is there. Raises UserError if it is not this request's."""
    return self._check_file(Path(f'{stem}{self.last}'), request)

  def _check_file(self, file: Path, request: Request) -> bool:
    """Returns whether a file is there. Raises UserError if its notes are not this request's."""
    if not os.path.lexists(file):
      return False
    notes = _notes(file)
    if notes is None or notes['key'] != f'{request.key():016x}':
      raise UserError(
        f'{printable(file)} exists, but belongs to another image or prompt; choose another --output, or move it away'
      )
    if notes['made_by'] != self._made_by:
      difference = differing(notes['made_by'], self._made_by)
      raise UserError(f'{printable(file)} was made with {difference}; choose another --output')
    return True

  @contextlib.contextmanager
  def writing(self) -> Iterator[None]:
    """Raises OutputLost instead of UserError if nothing more can be written."""
    try:
      yield
    except UserError as error:
      if getattr(error.__cause__, 'errno', None) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        raise OutputLost(f'{error}; rerun the command to resume') from error
      raise


class Output(ResultFiles):
  """Writes predictions; several threads may share one."""

  last, others = MASK, (OVERLAY,)

  def write(self, request: Request, prediction: Prediction) -> Written:
    """Writes the pictures. Raises UserError, or OutputLost if later results would fail too."""
    notes, stem = self.notes(request), self.free_place(request)
    mask_file = None if stem is None else Path(f'{stem}{MASK}')
    if mask_file is not None:
      with self.writing():
        texts = {NOTES: json.dumps(notes)}
        write_photo_png(f'{stem}{OVERLAY}', np.asarray(prediction.overlay()), notes=texts)
        write_png(mask_file, prediction.mask, notes=texts)
    line = json.dumps(_row(request, prediction, mask_file) | notes) + '\n'
    return Written(
      request,
      line.encode(),
      _summary(request, prediction, mask_file),
      prediction.area == 0,
      tuple(prediction.unknown),
      prediction.cut,
    )

  def _check_free(self, stem: Path, request: Request) -> bool:
    """Checks both files; without notes, as earlier versions wrote it, an overlay belongs to its mask."""
    written, overlay = super()._check_free(stem, request), Path(f'{stem}{OVERLAY}')
    if overlay.is_file() and not (written and _notes(overlay) is None):
      self._check_file(overlay, request)
    return written


def made_by(checkpoint: str, dtype: str, **how: Any) -> dict[str, Any]:
  """Returns an identification of the model and the options that results are made with. Raises UserError."""
  description, folder = read_description(checkpoint), resolve(checkpoint)
  parts: list[Any] = [description['model'], description.get('files')]
  if not parts[1]:  # a model saved without checksums, by an earlier version
    for file in sorted(path for path in folder.rglob('*') if path.is_file()):
      size, time = file.stat().st_size, file.stat().st_mtime_ns
      content = hashlib.sha256(file.read_bytes()).hexdigest() if size <= _HASHED else time
      parts.append([str(file.relative_to(folder)), size, content])
  model = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
  return {'model': model[:12], 'dtype': dtype, **how}


def _notes(file: Path) -> dict[str, Any] | None:
  """Returns the notes in a result's file; None for any other file."""
  try:
    with Image.open(file, formats=('PNG',)) as image:
      notes = json.loads(image.info[NOTES])
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
