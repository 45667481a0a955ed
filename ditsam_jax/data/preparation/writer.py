"""Checks planned images in one pass and, unless only checking, writes them atomically as a TFDS data set."""

import contextlib
import dataclasses
import fcntl
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core import registered

from ditsam_jax.data import shards
from ditsam_jax.data.declaration import VERSION, Counts, prepared_folder
from ditsam_jax.data.preparation.images import EncodedImage, PlannedImage, encode_all
from ditsam_jax.data.preparation.problems import Problems
from ditsam_jax.data.records import check_shards, quiet_tfds, record_features, writing_to
from ditsam_jax.errors import UserError
from ditsam_jax.storage import bucket
from ditsam_jax.storage.bucket import AnyPath, BucketPath
from ditsam_jax.storage.lease import Lease
from ditsam_jax.storage.paths import any_path
from ditsam_jax.terminal import printable, progress

_SHARD = 400  # images; TFDS keeps the examples of one shard in memory, about 60 MB
_FEW_IMAGES = 300  # fewer are read faster than worker processes start
_MOST_WORKERS = 16  # a single process writes the records


@dataclasses.dataclass(frozen=True)
class Target:
  """A data set to write."""

  name: str  # in TFDS
  split_by: str  # '' if there is only one partition
  title: str  # for messages
  data_dir: str | os.PathLike
  encoding: str | None  # of the images: 'jpeg', or None for several

  @property
  def directory(self) -> AnyPath:
    """The final folder of the complete data set."""
    return prepared_folder(self.data_dir, self.name, self.split_by)


@dataclasses.dataclass(frozen=True)
class Prepared:
  """A prepared data set."""

  directory: AnyPath
  splits: dict[str, Counts]
  whole: Counts
  left_out: dict[str, int]  # problems by kind, left out with skip_bad
  seconds: float | None  # duration; None if it was prepared earlier
  masks: int  # number of masks drawn in that time


class Tally:
  """Counts the written images, objects and expressions."""

  def __init__(self):
    self.splits: dict[str, Counts] = {}
    self.masks = 0
    self._images: set[int] = set()

  def add(self, split: str, encoded: EncodedImage) -> None:
    objects = [one for one, _ in encoded.objects]
    several = sum(len(one.expressions) for one in objects if len(one.masks) > 1)
    nothing = sum(len(one.expressions) for one, area in zip(objects, encoded.areas) if not area)
    more = Counts(1, len(objects), sum(len(one.expressions) for one in objects), several, nothing)
    self.splits[split] = Counts(*map(sum, zip(self.splits.get(split, Counts()), more)))
    self._images.add(encoded.planned.image_id)

  def whole(self) -> Counts:
    """Returns the counts over all splits; an image in two splits counts once."""
    summed = Counts(*map(sum, zip(Counts(), *self.splits.values())))
    return summed._replace(images=len(self._images))


class _Refused(Exception):
  """Raised if problems were found and nothing may be kept."""


# Not in TFDS' registry, so that `tfds.load` reads the folder instead of constructing this class without arguments.
with registered.skip_registration():

  class ReferringBuilder(tfds.core.ShardBasedBuilder):
    """Referring expressions, one record per image with all its objects in the split.

    Images are stored once, not once per object: this takes a third of the space, and evaluation decodes them once.
    Records are in the order of the annotations.
    """

    VERSION = tfds.core.Version(VERSION)
    # Nothing is downloaded, and TFDS' checksum lookup needs a package that it does not install.
    url_infos = None

    def __init__(self, target: Target, images: dict[str, list[PlannedImage]], **kwargs: Any):
      self.name = target.name  # pyright: ignore[reportAttributeAccessIssue]  # a class attribute in TFDS
      self._target, self._planned = target, images
      self.encoded: Iterator[tuple[str, EncodedImage]] = iter(())  # the good ones of `images`
      self.at_end: Callable[[], dict[str, Any]] = dict  # returns the content of metadata.json
      if target.split_by:
        kwargs['config'] = tfds.core.BuilderConfig(name=target.split_by, description=target.title)
      super().__init__(file_format='array_record', data_dir=os.fspath(target.data_dir), **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
      return tfds.core.DatasetInfo(
        builder=self,
        description=self.__doc__,
        features=record_features(self._target.encoding),
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
      next(self.encoded, None)  # exhausts the iterator, which may raise _Refused
      assert self.info.metadata is not None  # set in `_info`
      self.info.metadata.update(self.at_end())


class _Stream:
  """Hands out a single stream of all splits' images shard by shard, so that workers never idle."""

  def __init__(self, images: Iterator[tuple[str, EncodedImage]]):
    self._images = images
    self._next: tuple[str, EncodedImage] | None = None

  def take(self, split: str, number: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the next `number` records of the split; fewer at its end."""
    for _ in range(number):
      self._next = self._next or next(self._images, None)
      if self._next is None or self._next[0] != split:
        return
      (_, encoded), self._next = self._next, None
      yield encoded.planned.image_id, _record(encoded)


def _record(encoded: EncodedImage) -> dict[str, Any]:
  objects = [
    {
      'object_id': one.object_id,
      'category': one.category,
      'mask': io.BytesIO(mask),
      'expressions': list(one.expressions),
      'kinds': [''] * len(one.expressions),
    }
    for one, mask in encoded.objects
  ]
  return {'image': io.BytesIO(encoded.image), 'image_id': encoded.planned.image_id, 'objects': objects}


def write(
  target: Target,
  images: dict[str, list[PlannedImage]],
  found: Problems,
  *,
  skip_bad: bool,
  processes: int | None,
  say: Callable[[str], None],
  observe: Callable[[str, EncodedImage], None] = lambda split, encoded: None,
  metadata: Callable[[], dict[str, Any]] = dict,
  check_only: bool = False,
) -> Tally:
  """Encodes all images and writes them to `target.directory` atomically.

  Removes the leftovers of interrupted runs.

  Args:
    target: the data set to write.
    images: planned images by split, in the order of the records.
    found: problems so far; problems of images and masks are added.
    skip_bad: leave out bad data and write the rest.
    processes: number of worker processes; None: one per core, or none for few images.
    say: receives the problems, one line at a time.
    observe: called with every written image and its split.
    metadata: called at the end; returns entries of metadata.json besides the counts.
    check_only: check everything, but write nothing.

  Raises:
    UserError: problems were found without `skip_bad`, no usable data is left, another process prepares the same data
      set, or a folder is not writable.
  """
  tally = Tally()
  if not any(images.values()):
    raise _refusal(found, say, f'{target.title}: no image has a usable object', may_skip=False)
  encoded = _encoded(images, _workers(images, processes), found, tally, skip_bad, observe)
  try:
    with contextlib.closing(encoded):
      if check_only:
        for _ in encoded:
          pass
      else:
        _write(target, images, encoded, tally, found, metadata)
  except _Refused as refused:
    raise _refusal(found, say, f'{target.title}: {refused}', may_skip=not skip_bad) from None
  for line in found.report():
    say(f'skipped: {line}')
  return tally


def _workers(images: dict[str, list[PlannedImage]], processes: int | None) -> int:
  if processes is not None:
    return processes
  return 0 if sum(map(len, images.values())) < _FEW_IMAGES else min(os.cpu_count() or 1, _MOST_WORKERS)


def _write(
  target: Target,
  images: dict[str, list[PlannedImage]],
  encoded: Iterator[tuple[str, EncodedImage]],
  tally: Tally,
  found: Problems,
  metadata: Callable[[], dict[str, Any]],
) -> None:
  directory = target.directory
  with writing_to(target.data_dir):
    if isinstance(directory, BucketPath):
      with staged(directory) as stage:
        _write(dataclasses.replace(target, data_dir=stage), images, encoded, tally, found, metadata)
      return
    directory.parent.mkdir(parents=True, exist_ok=True)
    with only_one(directory), quiet_tfds(), tempfile.TemporaryDirectory() as unused:
      builder = ReferringBuilder(target, images)
      builder.encoded = encoded
      builder.at_end = lambda: {
        'splits': {name: counts._asdict() for name, counts in tally.splits.items()},
        'whole': tally.whole()._asdict(),
        'left_out': found.counts,
        **metadata(),
      }
      builder.download_and_prepare(download_dir=unused)


def check_place(data_dir: str | os.PathLike) -> None:
  """Raises UserError if a bucket is missing or cannot be written to."""
  if isinstance(path := any_path(data_dir), BucketPath):
    bucket.check(path, writes=True)


@contextlib.contextmanager
def staged(directory: BucketPath) -> Iterator[str]:
  """Yields a local folder of data sets; the data set at the end of `directory` is then uploaded from it.

  Excludes other processes preparing the same data set, and removes what killed ones left. Nothing is uploaded after an
  exception.

  Raises:
    UserError: another process is preparing the data set, or has just done so.
    OSError: uploading failed.
  """
  with (
    Lease(directory.with_name('.preparing'), f'data set {printable(directory)}'),
    tempfile.TemporaryDirectory() as stage,
  ):
    if (directory / shards.LAST).is_file():
      raise UserError(f'another process has just prepared {printable(directory)}; run the command again to see it')
    bucket.remove_tree(directory)
    yield stage
    (prepared,) = [path.parent for path in Path(stage).rglob(shards.LAST)]
    shards.publish(prepared, directory)


def _encoded(
  images: dict[str, list[PlannedImage]],
  workers: int,
  found: Problems,
  tally: Tally,
  skip_bad: bool,
  observe: Callable[[str, EncodedImage], None],
) -> Generator[tuple[str, EncodedImage], None, None]:
  """Yields the usable images of all splits, with a progress bar. Raises _Refused at the end if nothing may be kept."""
  order = [(split, image) for split, some in images.items() for image in some]
  with progress(len(order), 'preparing', 'images') as bar:
    for (split, _), encoded in zip(order, encode_all((image for _, image in order), workers)):
      for problem in encoded.problems:
        found.add(*problem)
      bar.update()
      tally.masks += sum(len(one.masks) for one in encoded.planned.objects)
      if encoded.image:
        tally.add(split, encoded)
        observe(split, encoded)
        yield split, encoded
  if found and not skip_bad:
    raise _Refused('the data has problems')
  empty = [split for split, some in images.items() if some and split not in tally.splits]
  if empty:
    raise _Refused(f'no usable image in {", ".join(empty)}')


def _refusal(found: Problems, say: Callable[[str], None], reason: str, *, may_skip: bool) -> UserError:
  for line in found.report():
    say(line)
  advice = 'Fix them' + ', or skip the affected data with --skip-bad' * may_skip if found else 'Check --annotations'
  return UserError(f'{reason} ({len(found):,} problem{"s" * (len(found) != 1)}); nothing was written. {advice}')


def prepared_before(directory: AnyPath) -> Prepared:
  """Returns the data set of an earlier run. Raises UserError if it is damaged or was not written by this command."""
  try:
    in_bucket = isinstance(directory, BucketPath)
    builder = tfds.builder_from_directory(shards.description(directory) if in_bucket else directory)
    metadata = builder.info.metadata or {}
    splits = {name: Counts(**counts) for name, counts in metadata['splits'].items()}
    if isinstance(directory, BucketPath):
      shards.check(directory)
    else:
      check_shards(directory, builder.info.splits)
    return Prepared(directory, splits, Counts(**metadata['whole']), metadata['left_out'], None, 0)
  except UserError:
    raise
  except Exception as error:  # TFDS raises many kinds for a foreign or broken folder
    raise UserError(
      f'{directory} exists, but was not written by this command ({type(error).__name__}); move it away'
    ) from error


@contextlib.contextmanager
def only_one(directory: Path) -> Iterator[None]:
  """Excludes other processes preparing the same data set, and removes the leftovers of killed ones.

  Raises:
    UserError: another process is preparing the data set, or has just done so.
  """
  descriptor = os.open(directory.parent, os.O_RDONLY)
  try:
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released by the system when the process ends
    except BlockingIOError as error:
      raise UserError(f'another process is preparing {directory}; wait for it to finish') from error
    if (directory / shards.LAST).is_file():
      raise UserError(f'another process has just prepared {printable(directory)}; run the command again to see it')
    for leftover in directory.parent.glob(f'incomplete.*_{directory.name}'):
      shutil.rmtree(leftover)
    yield
  finally:
    os.close(descriptor)
