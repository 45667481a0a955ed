"""`prepare`: checks the official downloads and writes one of the four data sets."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from ditsam_jax.data.preparation.problems import Problems
from ditsam_jax.data.preparation.writer import Prepared, Target, check_place, prepared_before, write
from ditsam_jax.data.refcoco import catalogue
from ditsam_jax.data.refcoco.annotations import read_instances
from ditsam_jax.data.refcoco.plan import plan
from ditsam_jax.data.refcoco.refs import read_refs, refs_file
from ditsam_jax.data.workers import check_processes
from ditsam_jax.errors import UserError
from ditsam_jax.storage.files import open_regular
from ditsam_jax.terminal import printable


def prepare(
  dataset: str,
  split_by: str,
  annotations_dir: str | os.PathLike,
  images_dir: str | os.PathLike,
  data_dir: str | os.PathLike,
  *,
  skip_bad: bool = False,
  processes: int | None = None,
  say: Callable[[str], None] = lambda text: None,
) -> Prepared:
  """Reads the official files and writes the data set to `catalogue.folder(data_dir, dataset, split_by)`.

  The data set is written to a temporary folder, which is renamed when complete. Removes the leftovers of interrupted
  runs.

  Args:
    dataset, split_by: see catalogue.FAMILY.
    annotations_dir: the data set's folder with refs and instances.json, or its parent.
    images_dir: folder of COCO's train2014 images, or its parent.
    data_dir: folder of prepared data sets.
    skip_bad: skip bad images, refs and sentences and write the rest.
    processes: number of worker processes that read images and draw masks, by default one per core. Calling scripts
      then need `if __name__ == '__main__'`; 0 uses the current process. Records do not depend on it.
    say: receives progress messages, one line at a time.

  Raises:
    UserError: files are missing or damaged, problems were found without `skip_bad` (each kind is first reported to
      `say`), another process prepares the same data set, or a folder is not writable.
  """
  if processes is not None:
    check_processes(processes, '--processes')
  check_place(data_dir)
  target = Target(catalogue.tfds_name(dataset), split_by, f'{dataset} ({split_by})', data_dir, 'jpeg')
  annotations_dir, images_dir = _annotations_folder(annotations_dir, dataset), _images_folder(images_dir)
  refs_path, instances_path = refs_file(annotations_dir, split_by), annotations_dir / 'instances.json'
  if (target.directory / 'dataset_info.json').exists():
    _check_given(instances_path, images_dir)
    return prepared_before(target.directory)
  started, found = time.monotonic(), Problems()
  say(f'reading the refs and instances.json of {annotations_dir}')
  refs = read_refs(refs_path)
  instances = read_instances(
    instances_path,
    {ref.image_id for ref in refs},
    {one for ref in refs for one in ref.annotation_ids},
  )
  data_set = catalogue.FAMILY[dataset]
  splits = data_set.partition(split_by).splits
  images = plan(refs, instances, images_dir, splits, found, may_lack_target=data_set.generalised)
  del refs, instances
  tally = write(target, images, found, skip_bad=skip_bad, processes=processes, say=say)
  seconds = time.monotonic() - started
  return Prepared(target.directory, tally.splits, tally.whole(), found.counts, seconds, tally.masks)


def _annotations_folder(given: str | os.PathLike, dataset: str) -> Path:
  given = _expanded('--annotations', given)
  if (given / dataset).is_dir():
    return given / dataset
  if not given.is_dir():
    raise UserError(
      f'--annotations={given} is not a folder; expected the folder that contains {dataset}/ as downloaded'
    )
  own = given.resolve().name
  if own != dataset and own in catalogue.FAMILY:
    raise UserError(f'--annotations={given} is the folder of {own}, not of {dataset}; give its parent folder')
  return given


def _expanded(option: str, given: str | os.PathLike) -> Path:
  try:
    return Path(given).expanduser()
  except RuntimeError as error:  # unknown ~user
    raise UserError(f'{option}={printable(given)}: {printable(error)}; expected a folder') from error


def _check_given(instances: Path, images_dir: Path) -> None:
  """Checks the given files, although a prepared data set no longer needs them: a wrong path is likely a mistake."""
  open_regular(instances, most_bytes=2**63).close()
  if next(images_dir.glob('COCO_train2014_*.jpg'), None) is None:
    raise UserError(f"--images={images_dir} has no COCO_train2014_*.jpg; expected COCO's train2014 images")


def _images_folder(given: str | os.PathLike) -> Path:
  given = _expanded('--images', given)
  if not given.is_dir():
    raise UserError(f"--images={given} is not a folder; expected the folder with COCO's COCO_train2014_*.jpg")
  return given / 'train2014' if (given / 'train2014').is_dir() else given
