"""`prepare`: checks a user's own annotations and images and writes them as a data set."""

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ditsam_jax.data import datasets
from ditsam_jax.data.own import catalogue
from ditsam_jax.data.own.entries import Context
from ditsam_jax.data.own.formats import format_of, named, read
from ditsam_jax.data.own.objects import ObjectList
from ditsam_jax.data.own.plan import plan
from ditsam_jax.data.own.preview import Preview
from ditsam_jax.data.own.report import Report
from ditsam_jax.data.preparation.images import EncodedImage
from ditsam_jax.data.preparation.problems import Problems
from ditsam_jax.data.preparation.writer import Prepared, Target, check_place, prepared_before, write
from ditsam_jax.data.workers import check_processes
from ditsam_jax.errors import UserError
from ditsam_jax.storage.bucket import AnyPath
from ditsam_jax.storage.description import read_config, vocabulary_file
from ditsam_jax.storage.files import open_regular, write_text
from ditsam_jax.storage.image_files import write_png
from ditsam_jax.storage.paths import any_path
from ditsam_jax.terminal import printable
from ditsam_jax.tokenization import Tokenizer


def prepare(
  name: str,
  annotations: str | os.PathLike,
  images_dir: str | os.PathLike | None,
  data_dir: str | os.PathLike,
  *,
  format: str = '',
  masks_dir: str | os.PathLike | None = None,
  seed: int = 0,
  skip_bad: bool = False,
  processes: int | None = None,
  check_only: bool = False,
  model: str | os.PathLike = 'shapes',
  say: Callable[[str], None] = lambda text: None,
  show: Callable[[str], None] = lambda text: None,
) -> Prepared:
  """Reads annotations in one of formats.FORMATS and writes the data set to `data_dir`/`name`.

  The data set is written to a temporary folder, which is renamed when complete. Removes the leftovers of interrupted
  runs. Also writes preview.png, report.txt and, unless `check_only`, objects.csv to `data_dir`/`name`.

  Args:
    name: name of the data set: lower-case letters, digits and underscores.
    annotations: file or folder of annotations.
    images_dir: folder that image paths are relative to; None: the folder of the annotations.
    data_dir: folder of prepared data sets.
    format: one of formats.FORMATS; '' detects it from the content.
    masks_dir: folder that mask paths are relative to; None: the folder of the annotations.
    seed: seed of the random splits if the annotations have no splits.
    skip_bad: skip bad entries, images, masks and sentences and write the rest.
    processes: number of worker processes that read images and draw masks, by default one per core. Calling scripts
      then need `if __name__ == '__main__'`; 0 uses the current process. Records do not depend on it.
    check_only: check and report, but write no data set.
    model: name or folder of the model whose tokenizer the report uses.
    say: receives progress messages, one line at a time.
    show: receives the report, one line at a time. Data with problems are left out of it.

  Raises:
    UserError: the name is invalid, files are missing or in no known format, problems were found without `skip_bad`
      (each kind is first reported to `say`), another process prepares the same data set, or a folder is not writable.
  """
  if processes is not None:
    check_processes(processes, '--processes')
  datasets.check_own_name(name)
  check_place(data_dir)
  annotations = _existing('--annotations', annotations)
  home = annotations if annotations.is_dir() else annotations.parent
  images_dir = home if images_dir is None else _folder('--images', images_dir)
  masks_dir = home if masks_dir is None else _folder('--masks', masks_dir)
  format = format or format_of(annotations)
  named(format)
  if format == 'folder' and not all(os.path.samefile(folder, home) for folder in (images_dir, masks_dir)):
    raise UserError('--images and --masks do not apply to a folder per split, which holds both; leave them out')
  target = Target(name, '', f'data set {name!r}', data_dir, None)
  folders = [os.path.relpath(folder, home) for folder in (images_dir, masks_dir)]
  made_of = _made_of(annotations, [format, seed, skip_bad, *folders], any_path(data_dir) / name)
  if not check_only and (target.directory / 'dataset_info.json').exists():
    return _prepared_before(target, made_of)
  tokenizer = Tokenizer(vocabulary_file(model), read_config(model).max_text_tokens)
  started = time.monotonic()
  context = Context(annotations, images_dir, masks_dir, Problems(), say)
  say(f'reading {annotations} ({format})')
  planned = plan(read(format, context), context, seed=seed)
  if planned.split_here and any(planned.images.values()):
    shares = ', '.join(f'{split} {len(images):,}' for split, images in planned.images.items())
    say(f'the annotations have no splits; splitting images at random (seed {seed}): {shares} images')
  report = Report(planned, context, tokenizer, os.fspath(model))
  preview, objects = Preview(planned, seed), ObjectList(planned)

  def observe(split: str, encoded: EncodedImage) -> None:
    for observer in (report, preview, objects):
      observer.observe(split, encoded)

  folder = any_path(data_dir) / name
  try:
    tally = write(
      target,
      planned.images,
      context.found,
      skip_bad=skip_bad,
      processes=processes,
      say=say,
      observe=observe,
      metadata=lambda: {catalogue.OWN: {'format': format, 'made_of': made_of}},
      check_only=check_only,
    )
  except UserError:
    _finish(folder, report.lines(), preview, say, show)
    raise
  seconds = time.monotonic() - started
  _finish(folder, report.lines(), preview, say, show, None if check_only else objects)
  return Prepared(target.directory, tally.splits, tally.whole(), context.found.counts, seconds, tally.masks)


def _finish(
  folder: AnyPath,
  lines: Sequence[str],
  preview: Preview,
  say: Callable[[str], None],
  show: Callable[[str], None],
  objects: ObjectList | None = None,
) -> None:
  """Shows the report and writes it, the preview and the list of objects. Only warns if they cannot be written."""
  for line in lines:
    show(line)
  if not lines or (sheet := preview.sheet()) is None:
    return
  try:
    write_png(folder / 'preview.png', sheet)  # creates the folder
    write_text(folder / 'report.txt', '\n'.join(lines) + '\n')
    if objects:
      objects.write(folder / 'objects.csv')
    show(f'preview: {folder / "preview.png"}')
  except (UserError, OSError) as error:
    say(f'warning: {printable(error)}')


def _made_of(annotations: Path, options: list[Any], result: AnyPath) -> str:
  """Returns a hash of the annotations and options; for folders, of names, sizes and times of files outside `result`."""
  digest = hashlib.blake2b(repr(options).encode('utf-8', 'surrogateescape'), digest_size=16)
  if annotations.is_dir():
    made = os.path.abspath(result)
    for file in sorted(path for path in annotations.rglob('*') if path.is_file()):
      if os.path.abspath(file).startswith(f'{made}{os.sep}'):
        continue
      status = file.stat()
      identity = f'{file.relative_to(annotations)} {status.st_size} {status.st_mtime_ns}'
      digest.update(identity.encode('utf-8', 'surrogateescape'))
  else:
    with open_regular(annotations, most_bytes=2**63) as file:
      while block := file.read(2**20):
        digest.update(block)
  return digest.hexdigest()


def _prepared_before(target: Target, made_of: str) -> Prepared:
  before = prepared_before(target.directory)
  if catalogue.made_of(target.name, target.data_dir) != made_of:
    raise UserError(
      f'{target.title} already exists in {printable(target.directory)}, prepared from other annotations or with other '
      f'options; delete that folder or choose another --name'
    )
  return before


def _existing(option: str, given: str | os.PathLike) -> Path:
  try:
    path = Path(given).expanduser()
    if not path.exists():
      raise UserError(f'{option}={printable(given)}: no such file or folder')
    return path
  except (RuntimeError, OSError, ValueError) as error:  # unknown ~user; invalid file name
    reason = getattr(error, 'strerror', None) or error
    raise UserError(f'{option}={printable(given)}: {printable(reason)}; expected a file or folder') from error


def _folder(option: str, given: str | os.PathLike) -> Path:
  path = _existing(option, given)
  if not path.is_dir():
    raise UserError(f'{option}={printable(given)} is not a folder')
  return path
