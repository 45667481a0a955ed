"""Turns entries into planned images; checks paths, ids, sentences and splits."""

import dataclasses
import functools
import hashlib
import os
import random
import re
from collections.abc import Iterable
from pathlib import Path

from ditsam_jax.data.own.entries import Context, Entry, Packed, Rejected
from ditsam_jax.data.own.masks import MaskFile, Segmentation
from ditsam_jax.data.own.pictures import Picture
from ditsam_jax.data.preparation import problems
from ditsam_jax.data.preparation.images import MOST_BYTES, PlannedImage, PlannedMask, PlannedObject
from ditsam_jax.data.preparation.sentences import good_sentences
from ditsam_jax.errors import UserError
from ditsam_jax.limits import MAX_OBJECTS
from ditsam_jax.storage.files import open_regular
from ditsam_jax.storage.paths import problem as no_local_path
from ditsam_jax.terminal import printable

SHARES = {'train': 0.8, 'val': 0.1, 'test': 0.1}  # shares of the images if the annotations have no splits
_SPLIT = re.compile(r'[A-Za-z][A-Za-z0-9_]{0,30}')
_SAME_SPLIT = {'validation': 'val', 'valid': 'val', 'training': 'train', 'testing': 'test'}


@dataclasses.dataclass(frozen=True)
class Named:
  """The user's names for an object of the prepared data."""

  place: str  # 'line 7'
  image: str
  id: str


@dataclasses.dataclass
class Plan:
  """The images to read, by split, and the names of their objects."""

  images: dict[str, list[PlannedImage]]
  names: dict[int, Named]  # by object id
  split_here: bool  # whether images were split at random


@dataclasses.dataclass
class _Found:
  """An image in a split with its objects."""

  picture: Picture
  objects: list[PlannedObject]


def plan(entries: Iterable[Entry], context: Context, *, seed: int = 0) -> Plan:
  """Returns the images of each split in order of first occurrence, each with its objects in order.

  Adds problems to `context.found` and leaves their entries out. Reads neither masks nor pixels. If no entry has a
  split, splits images at random by `seed`; copies of a file get the same split.
  """
  by_split: dict[str | None, dict[str | Packed, _Found]] = {}
  numbers = _Numbers()
  names: dict[int, Named] = {}
  for entry in entries:
    try:
      place, name = _image(entry, context.images_dir)
      split = _split(entry)
      numbers.check(entry)
      mask = _mask(entry, context.masks_dir)
      _hint(entry, context)
    except Rejected as error:
      context.reject(entry.place, error)
      continue
    expressions = good_sentences(entry.texts, entry.place, context.found)
    if not expressions:
      continue
    found = by_split.setdefault(split, {}).setdefault(
      place, _Found(Picture(place, f'{name} ({entry.place})', entry.size), [])
    )
    if len(found.objects) >= MAX_OBJECTS:
      context.found.add(problems.MANY_OBJECTS, f'{entry.place} ({name})')
      continue
    number = numbers.take(entry)
    names[number] = Named(entry.place, name, '' if entry.id is None else str(entry.id))
    found.objects.append(PlannedObject(number, entry.category, expressions, mask))
  unsplit = by_split.pop(None, {})
  if by_split:
    for found in unsplit.values():
      for one in found.objects:
        context.found.add(problems.BAD_SPLIT, f'{names[one.object_id].place} (no split, but other entries have one)')
  images = by_split if by_split else _split_images(unsplit, seed)
  return Plan(_numbered(_ordered(images)), names, not by_split)


class _Numbers:
  """Assigns object ids: the entry's id if it is an integer, otherwise the next free number."""

  def __init__(self):
    self._ids: set[str | int] = set()
    self._taken: set[int] = set()
    self._next = 0

  def check(self, entry: Entry) -> None:
    if entry.id is not None and entry.id in self._ids:
      raise Rejected(problems.REPEATED_ID, f'id {printable(entry.id, 60)}')

  def take(self, entry: Entry) -> int:
    own = entry.id
    if own is not None:
      self._ids.add(own)
    if isinstance(own, int) and own not in self._taken:
      number = own
    else:
      while self._next in self._taken:
        self._next += 1
      number = self._next
    self._taken.add(number)
    return number


def _image(entry: Entry, images_dir: Path) -> tuple[str | Packed, str]:
  """Returns the image's location and its name for messages."""
  if isinstance(entry.image, Packed):
    return entry.image, os.path.basename(entry.image.file)
  return below(images_dir, entry.image, 'image'), entry.image


def _hint(entry: Entry, context: Context) -> None:
  """Hints once each at --images and --masks if files are relative to another folder."""
  home = context.annotations.parent
  for given, option, folder, other in (
    (entry.image, '--images', context.images_dir, home),
    (entry.mask, '--masks', context.masks_dir, context.images_dir),
  ):
    if option in context.hinted or not isinstance(given, str) or '..' in given.split('/'):
      continue
    if not os.path.exists(folder / given) and os.path.isfile(other / given):
      context.hinted.add(option)
      context.say(
        f"hint: '{printable(given)}' is not in {printable(folder)} but in {printable(other)}; use "
        f'{option}={printable(other)}'
      )


def _mask(entry: Entry, masks_dir: Path) -> tuple[PlannedMask, ...]:
  if entry.mask is None:
    return ()
  if isinstance(entry.mask, str):
    name = f'{entry.place}: {entry.mask}'
    return (PlannedMask(name, MaskFile(below(masks_dir, entry.mask, 'mask'), name)),)
  return (PlannedMask(entry.place, Segmentation(entry.mask)),)


def _split(entry: Entry) -> str | None:
  if entry.split is None:
    return None
  split = _SAME_SPLIT.get(entry.split, entry.split)
  if not _SPLIT.fullmatch(split) or split == 'all':  # TFDS uses 'all' for all splits
    raise Rejected(
      problems.BAD_SPLIT, f"split '{printable(entry.split, 60)}', expected a plain word: train, val, test, ..."
    )
  return split


@functools.lru_cache(10_000)
def below(folder: Path, given: str, what: str) -> str:
  """Returns the path of a file in a folder or below it, given relative or absolute. Raises Rejected for other paths."""
  if reason := no_local_path(given):
    raise Rejected(problems.BAD_PATH, f"{what} '{printable(given, 80)}': {reason}")
  if not given.isprintable() or '\\' in given or any(len(part.encode()) > 255 for part in given.split('/')):
    raise Rejected(problems.BAD_PATH, f"{what} '{printable(given, 80)}': not the name of a file")
  path = os.path.normpath(os.path.join(folder, given))
  root = os.path.normpath(folder)
  absolute = os.path.isabs(given)
  inside = os.path.abspath(path).startswith(os.path.join(os.path.abspath(root), ''))
  if not inside or '..' in given.split('/'):
    kind = 'an absolute path outside' if absolute else 'leads out of'
    raise Rejected(problems.BAD_PATH, f"{what} '{printable(given, 80)}': {kind} {printable(folder)}")
  return path


def _split_images(images: dict[str | Packed, _Found], seed: int) -> dict[str, dict[str | Packed, _Found]]:
  """Splits images at random by SHARES; too few images all become 'train'."""
  groups: dict[bytes, list[str | Packed]] = {}
  for place in images:
    groups.setdefault(_content(place), []).append(place)
  order = sorted(groups)  # by content: independent of file names and line order
  random.Random(seed).shuffle(order)
  held_out = {split: max(1, round(share * len(order))) for split, share in SHARES.items() if split != 'train'}
  if len(order) <= sum(held_out.values()):
    held_out = {}
  of: dict[str | Packed, str] = {}
  for split, number in held_out.items():
    for content in order[:number]:
      of |= dict.fromkeys(groups[content], split)
    order = order[number:]
  splits: dict[str, dict[str | Packed, _Found]] = {}
  for place, found in images.items():
    splits.setdefault(of.get(place, 'train'), {})[place] = found
  return splits


def _content(place: str | Packed) -> bytes:
  """Returns a hash of a file's bytes, or of its name if it cannot be read, which is reported later."""
  if isinstance(place, Packed):
    return place.digest
  digest = hashlib.blake2b(digest_size=16)
  try:
    with open_regular(place, most_bytes=MOST_BYTES) as file:
      while block := file.read(2**20):
        digest.update(block)
  except (UserError, OSError):
    digest.update(place.encode('utf-8', 'surrogateescape'))
  return digest.digest()


def _ordered(images: dict) -> dict:
  """Returns the splits with train, val and test first."""
  first = [split for split in SHARES if split in images]
  return {split: images[split] for split in [*first, *(split for split in images if split not in SHARES)]}


def _numbered(images: dict[str, dict[str | Packed, _Found]]) -> dict[str, list[PlannedImage]]:
  numbers: dict[str | Packed, int] = {}
  return {
    split: [
      PlannedImage(found.picture, numbers.setdefault(place, len(numbers)), tuple(found.objects))
      for place, found in some.items()
    ]
    for split, some in images.items()
  }
