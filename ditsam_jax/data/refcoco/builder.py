"""TFDS builder of the four data sets, and `prepare`, which checks the downloads and writes one of them."""

import contextlib
import dataclasses
import fcntl
import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core import registered

from ditsam_jax.data.records import check_shards, quiet_tfds, record_features, writing_to
from ditsam_jax.data.refcoco import catalogue
from ditsam_jax.data.refcoco.annotations import read_instances
from ditsam_jax.data.refcoco.catalogue import Counts
from ditsam_jax.data.refcoco.images import EncodedImage, encode_all
from ditsam_jax.data.refcoco.plan import PlannedImage, plan
from ditsam_jax.data.refcoco.problems import Problems
from ditsam_jax.data.refcoco.refs import read_refs, refs_file
from ditsam_jax.data.workers import check_processes
from ditsam_jax.errors import UserError
from ditsam_jax.storage.files import open_regular
from ditsam_jax.terminal import printable, progress

_SHARD = 400  # images: TFDS holds the examples of one shard in memory, about 60 MB
_FEW_IMAGES = 300  # read faster than worker processes start
_MOST_WORKERS = 16  # one process writes what all of them read


@dataclasses.dataclass(frozen=True)
class Prepared:
  """What is in a prepared data set."""

  directory: Path
  splits: dict[str, Counts]
  whole: Counts
  left_out: dict[str, int]  # problems by kind, left out with skip_bad
  seconds: float | None  # None: it had been prepared before
  masks: int  # drawn in that time


class _Refused(Exception):
  """Problems were found, so that nothing is to be kept."""


# Out of TFDS' registry, so that `tfds.load` reads the folder instead of asking this class for arguments.
with registered.skip_registration():

  class RefCoco(tfds.core.ShardBasedBuilder):
    """Referring expressions on COCO's train2014 images, one record an image with all its refs of the split.

    An image is stored once, not once an object: a third of the size, and evaluation decodes it once. Written in
    the order of the official refs.
    """

    VERSION = tfds.core.Version(catalogue.VERSION)
    # Nothing is downloaded, and TFDS' search for checksums needs a package that it does not install.
    url_infos = None

    def __init__(self, dataset: str, split_by: str, images: dict[str, list[PlannedImage]], **kwargs: Any):
      self.name = catalogue.tfds_name(dataset)  # pyright: ignore[reportAttributeAccessIssue]  # TFDS' is the class's
      self._planned = images
      self.encoded: Iterator[tuple[str, EncodedImage]] = iter(())  # all that `images` plans, but for what is bad
      self.at_end: Callable[[], dict[str, Any]] = dict  # what metadata.json gets
      config = tfds.core.BuilderConfig(name=split_by, description=f'{dataset}, split by {split_by}')
      super().__init__(config=config, file_format='array_record', **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
      return tfds.core.DatasetInfo(
        builder=self,
        description=self.__doc__,
        features=record_features('jpeg'),
        disable_shuffling=True,
        metadata=tfds.core.MetadataDict(),
      )

    def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[Callable[[], Iterator]]]:
      del dl_manager
      stream = _Stream(self.encoded)
      return {
        split: [lambda split=split: stream.take(split, _SHARD)] * -(-len(images) // _SHARD)
        for split, images in self._planned.items()
        if images
      }

    def _download_and_prepare(self, *args: Any, **kwargs: Any) -> None:
      super()._download_and_prepare(*args, **kwargs)
      next(self.encoded, None)  # to its end, which may refuse
      assert self.info.metadata is not None  # `_info` gave it some
      self.info.metadata.update(self.at_end())


class _Stream:
  """One stream of all splits' images, handed out a shard at a time, so that the workers never pause."""

  def __init__(self, images: Iterator[tuple[str, EncodedImage]]):
    self._images = images
    self._next: tuple[str, EncodedImage] | None = None

  def take(self, split: str, number: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """The next so many of the split; fewer where it ends."""
    for _ in range(number):
      self._next = self._next or next(self._images, None)
      if self._next is None or self._next[0] != split:
        return
      (_, encoded), self._next = self._next, None
      yield encoded.planned.image_id, _record(encoded)


def _record(encoded: EncodedImage) -> dict[str, Any]:
  objects = [
    {
      'object_id': one.ref_id,
      'category': one.category,
      'mask': io.BytesIO(mask),
      'expressions': list(one.expressions),
      'kinds': [''] * len(one.expressions),
    }
    for one, mask in encoded.objects
  ]
  return {'image': io.BytesIO(encoded.image), 'image_id': encoded.planned.image_id, 'objects': objects}


class _Tally:
  """Counts of what is written."""

  def __init__(self):
    self.splits: dict[str, Counts] = {}
    self.masks = 0
    self._images: set[int] = set()

  def add(self, split: str, encoded: EncodedImage) -> None:
    refs = [one for one, _ in encoded.objects]
    several = sum(len(ref.expressions) for ref in refs if len(ref.annotation_ids) > 1)
    nothing = sum(len(ref.expressions) for ref in refs if not ref.annotation_ids)
    more = Counts(1, len(refs), sum(len(ref.expressions) for ref in refs), several, nothing)
    self.splits[split] = Counts(*map(sum, zip(self.splits.get(split, Counts()), more)))
    self._images.add(encoded.planned.image_id)

  def whole(self) -> Counts:
    """Over the splits; an image in two of them counts once."""
    summed = Counts(*map(sum, zip(Counts(), *self.splits.values())))
    return summed._replace(images=len(self._images))


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
  directory = catalogue.folder(data_dir, dataset, split_by)
  annotations_dir, images_dir = _annotations_folder(annotations_dir, dataset), _images_folder(images_dir)
  refs_path, instances_path = refs_file(annotations_dir, split_by), annotations_dir / 'instances.json'
  if (directory / 'dataset_info.json').exists():
    _check_given(instances_path, images_dir)
    return _prepared_before(directory)
  started, found, tally = time.monotonic(), Problems(), _Tally()
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
  total = sum(map(len, images.values()))
  if not total:
    raise _refusal(found, say, f'{dataset} ({split_by}): no image has a usable ref')
  workers = min(os.cpu_count() or 1, _MOST_WORKERS) if processes is None else processes
  workers = 0 if total < _FEW_IMAGES and processes is None else workers
  try:
    with writing_to(data_dir):
      directory.parent.mkdir(parents=True, exist_ok=True)
      with (
        _only_one(directory),
        quiet_tfds(),
        tempfile.TemporaryDirectory() as unused,
        contextlib.closing(_encoded(images, workers, found, tally, skip_bad)) as encoded,
      ):
        builder = RefCoco(dataset, split_by, images, data_dir=os.fspath(data_dir))
        builder.encoded = encoded
        builder.at_end = lambda: {
          'splits': {name: counts._asdict() for name, counts in tally.splits.items()},
          'whole': tally.whole()._asdict(),
          'left_out': found.counts,
        }
        builder.download_and_prepare(download_dir=unused)
  except _Refused as refused:
    raise _refusal(found, say, f'{dataset} ({split_by}): {refused}') from None
  for line in found.report():
    say(f'skipped: {line}')
  return Prepared(directory, tally.splits, tally.whole(), found.counts, time.monotonic() - started, tally.masks)


def _encoded(
  images: dict[str, list[PlannedImage]], workers: int, found: Problems, tally: _Tally, skip_bad: bool
) -> Generator[tuple[str, EncodedImage], None, None]:
  """All images of all splits, with a progress bar. Raises _Refused at the end if any must not be written."""
  order = [(split, image) for split, some in images.items() for image in some]
  with progress(len(order), 'preparing', 'images') as bar:
    for (split, _), encoded in zip(order, encode_all((image for _, image in order), workers)):
      for problem in encoded.problems:
        found.add(*problem)
      bar.update()
      tally.masks += sum(len(one.annotation_ids) for one in encoded.planned.objects)
      if encoded.image:
        tally.add(split, encoded)
        yield split, encoded
  if found and not skip_bad:
    raise _Refused('the downloads have problems')
  empty = [split for split, some in images.items() if some and split not in tally.splits]
  if empty:
    raise _Refused(f'no usable image in {", ".join(empty)}')


def _refusal(found: Problems, say: Callable[[str], None], reason: str) -> UserError:
  for line in found.report():
    say(line)
  return UserError(
    f'{reason} ({len(found):,} problems); nothing was written. Fix them, or skip the affected data with --skip-bad'
  )


def _prepared_before(directory: Path) -> Prepared:
  try:
    builder = tfds.builder_from_directory(directory)
    metadata = builder.info.metadata or {}
    splits = {name: Counts(**counts) for name, counts in metadata['splits'].items()}
    check_shards(directory, builder.info.splits)
    return Prepared(directory, splits, Counts(**metadata['whole']), metadata['left_out'], None, 0)
  except UserError:
    raise
  except Exception as error:  # TFDS raises many kinds for a foreign or broken folder
    raise UserError(
      f'{directory} exists, but was not written by this command ({type(error).__name__}); move it away'
    ) from error


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


@contextlib.contextmanager
def _only_one(directory: Path) -> Iterator[None]:
  """Keeps other processes from preparing the same, and removes what killed ones left behind."""
  descriptor = os.open(directory.parent, os.O_RDONLY)
  try:
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go by the system when the process ends
    except BlockingIOError as error:
      raise UserError(f'another process is preparing {directory}; wait for it') from error
    for leftover in directory.parent.glob(f'incomplete.*_{directory.name}'):
      shutil.rmtree(leftover)
    yield
  finally:
    os.close(descriptor)
