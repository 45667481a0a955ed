"""Refs and instances joined: which images have to be read, and what of each belongs into its record."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ditsam_jax.data.refcoco import problems
from ditsam_jax.data.refcoco.annotations import ImageInfo, Instances
from ditsam_jax.data.refcoco.problems import Problems
from ditsam_jax.data.refcoco.refs import Ref
from ditsam_jax.limits import MAX_OBJECTS, MAX_PIXELS, MAX_SENTENCES
from ditsam_jax.tokenization import MAX_TEXT_BYTES


@dataclasses.dataclass(frozen=True, slots=True)
class PlannedObject:
  """One ref with its masks to be drawn: one, several (their union is the target) or none."""

  ref_id: int
  category: str
  expressions: tuple[str, ...]
  annotation_ids: tuple[int, ...]
  segmentations: tuple[Any, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class PlannedImage:
  """One record to be: what a worker process is sent."""

  file: str
  image_id: int
  height: int
  width: int
  objects: tuple[PlannedObject, ...]


def plan(
  refs: list[Ref],
  instances: Instances,
  images_dir: Path,
  splits: Mapping[str, Any],
  found: Problems,
  *,
  may_lack_target: bool = False,
) -> dict[str, list[PlannedImage]]:
  """The images of each split in the order in which the refs first name them, each with its refs in their order.

  Adds what is wrong to `found` and leaves it out. Masks are not looked at yet, nor are the images.
  `may_lack_target`: refs may name nothing, as in gRefCOCO.
  """
  ref_ids: set[int] = set()
  of_image: dict[tuple[str, int], list[PlannedObject]] = {}
  for ref in refs:
    if ref.ref_id in ref_ids:
      found.add(problems.REPEATED_REF, f'ref {ref.ref_id}')
      continue
    ref_ids.add(ref.ref_id)
    if ref.split not in splits:
      found.add(problems.UNKNOWN_SPLIT, f'ref {ref.ref_id} ({ref.split!r})')
    elif ref.image_id not in instances.images:
      found.add(problems.UNKNOWN_IMAGE, f'ref {ref.ref_id} (image {ref.image_id})')
    elif not ref.annotation_ids and not may_lack_target:
      found.add(problems.NO_TARGET, f'ref {ref.ref_id}')
    else:
      planned = _object(ref, instances, found)
      objects = of_image.setdefault((ref.split, ref.image_id), []) if planned else []
      if len(objects) >= MAX_OBJECTS:
        found.add(problems.MANY_REFS, f'ref {ref.ref_id} (image {ref.image_id})')
      elif planned:
        objects.append(planned)
  images: dict[str, list[PlannedImage]] = {split: [] for split in splits}
  usable: dict[int, bool] = {}
  for (split, image_id), objects in of_image.items():
    info = instances.images[image_id]
    if image_id not in usable:  # an image of two splits is reported once
      fault = _fault(info, images_dir)
      usable[image_id] = not fault
      if fault:
        found.add(fault, f'{info.file_name} (image {image_id})')
    if usable[image_id]:
      images[split].append(_image(str(images_dir / info.file_name), image_id, info, objects))
  return images


def _fault(info: ImageInfo, images_dir: Path) -> str:
  """The kind of problem with an image, before it is opened; '' for none."""
  name = info.file_name
  if not name.isprintable() or set(name) & set('/\\:') or name in ('', '.', '..') or len(name.encode()) > 255:
    return problems.FILE_NAME
  if not (info.height > 0 < info.width and info.height * info.width <= MAX_PIXELS):
    return problems.IMAGE_SIZE
  return '' if (images_dir / name).is_file() else problems.MISSING_FILE


def _image(file: str, image_id: int, info: ImageInfo, objects: list[PlannedObject]) -> PlannedImage:
  return PlannedImage(file, image_id, info.height, info.width, tuple(objects))


def _object(ref: Ref, instances: Instances, found: Problems) -> PlannedObject | None:
  annotations = []
  for annotation_id in ref.annotation_ids:
    annotation = instances.annotations.get(annotation_id)
    what = f'ref {ref.ref_id} (annotation {annotation_id})'
    if annotation is None:
      found.add(problems.UNKNOWN_ANNOTATION, what)
    elif annotation.image_id != ref.image_id:
      found.add(problems.OTHER_IMAGE, what)
    elif annotation.category_id not in instances.categories:
      found.add(problems.UNKNOWN_CATEGORY, f'annotation {annotation_id} (category {annotation.category_id})')
    else:
      annotations.append(annotation)
  expressions = _sentences(ref, found)
  if len(annotations) < len(ref.annotation_ids) or not expressions:
    return None
  names = dict.fromkeys(instances.categories[annotation.category_id] for annotation in annotations)
  return PlannedObject(
    ref.ref_id,
    ', '.join(names),
    expressions,
    ref.annotation_ids,
    tuple(annotation.segmentation for annotation in annotations),
  )


def _sentences(ref: Ref, found: Problems) -> tuple[str, ...]:
  """The sentences of a ref that say something."""
  if not ref.expressions:
    found.add(problems.NO_SENTENCE, f'ref {ref.ref_id}')
  if len(ref.expressions) > MAX_SENTENCES:
    found.add(problems.MANY_SENTENCES, f'ref {ref.ref_id} ({len(ref.expressions):,})')
    return ()
  good = []
  for index, text in enumerate(ref.expressions):
    if not text.strip():
      found.add(problems.BLANK_SENTENCE, f'sentence {index} of ref {ref.ref_id}')
    elif len(text.encode()) > MAX_TEXT_BYTES:
      found.add(problems.LONG_SENTENCE, f'sentence {index} of ref {ref.ref_id}')
    else:
      good.append(text)
  return tuple(good)
