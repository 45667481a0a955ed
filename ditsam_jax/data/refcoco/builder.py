"""`prepare`: checks the official downloads and writes one of the four data sets."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from ditsam_jax.data.preparation.problems import Problems
from ditsam_jax.data.preparation.writer import Prepared, Target, prepared_before, write
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

  The folder gets its name when it is whole, so an interrupted preparation is never taken for one; what such a
  one left behind is removed.

  Args:
    dataset, split_by: see catalogue.FAMILY.
    annotations_dir: holds the data set's folder with refs and instances.json, or is that folder.
    images_dir: holds COCO's train2014 images, or the folder train2014 with them.
    data_dir: folder of prepared data sets.
    skip_bad: skip bad images, refs and sentences and write the rest.
    processes: that read images and draw masks; by default one a core. A script that calls this then needs the
      usual `if __name__ == '__main__'`, or 0. The records do not depend on it.
    say: receives progress messages, one line at a time.

  Raises:
    UserError: files missing or damaged, problems found without `skip_bad` (after reporting each kind to `say`),
      another process at the same work, a folder that cannot be written to.
  """
  if processes is not None:
    check_processes(processes, '--processes')
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
  splits = catalogue.FAMILY[dataset].partition(split_by).splits
  images = plan(refs, instances, images_dir, splits, found, may_lack_target=dataset == 'grefcoco')
  del refs, instances
  tally = write(target, images, found, skip_bad=skip_bad, processes=processes, say=say)
  seconds = time.monotonic() - started
  return Prepared(target.directory, tally.splits, tally.whole(), found.counts, seconds, tally.masks)


def _annotations_folder(given: str | os.PathLike, dataset: str) -> Path:
  given = _expanded('--annotations', given)
  if (given / dataset).is_dir():
    return given / dataset
  if not given.is_dir():
    raise UserError(f'--annotations={given} is not a folder; expected the one that holds {dataset}/ as downloaded')
  own = given.resolve().name
  if own != dataset and own in catalogue.FAMILY:
    raise UserError(f'--annotations={given} is the folder of {own}, not of {dataset}; give its parent folder')
  return given


def _expanded(option: str, given: str | os.PathLike) -> Path:
  try:
    return Path(given).expanduser()
  except RuntimeError as error:  # ~somebody who is not there
    raise UserError(f'{option}={printable(given)}: {printable(error)}; expected a folder') from error


def _check_given(instances: Path, images_dir: Path) -> None:
  """What a finished data set does not need any more is still what was meant, or a mistake to be told."""
  open_regular(instances, most_bytes=2**63).close()
  if next(images_dir.glob('COCO_train2014_*.jpg'), None) is None:
    raise UserError(f"--images={images_dir} has no COCO_train2014_*.jpg; expected COCO's train2014 images")


def _images_folder(given: str | os.PathLike) -> Path:
  given = _expanded('--images', given)
  if not given.is_dir():
    raise UserError(f"--images={given} is not a folder; expected the one with COCO's COCO_train2014_*.jpg")
  return given / 'train2014' if (given / 'train2014').is_dir() else given
