"""Refs and instances joined: which images have to be read, and what of each belongs into its record."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ditsam_jax.data.refcoco import problems
from ditsam_jax.data.refcoco.annotations import ImageInfo, Instances
from ditsam_jax.data.refcoco.problems import Problems
from ditsam_jax.data.refcoco.refs import Ref


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
  refs: list[Ref], instances: Instances, images_dir: Path, splits: Mapping[str, Any], found: Problems
) -> dict[str, list[PlannedImage]]:
  """The images of each split in the order in which the refs first name them, each with its refs in their order.

  Adds what is wrong to `found` and leaves it out. Masks are not looked at yet, nor are the images.
  """
  of_image: dict[tuple[str, int], list[PlannedObject]] = {}
  for ref in refs:
    if ref.split not in splits:
      found.add(problems.UNKNOWN_SPLIT, f'ref {ref.ref_id} ({ref.split!r})')
    elif ref.image_id not in instances.images:
      found.add(problems.UNKNOWN_IMAGE, f'ref {ref.ref_id} (image {ref.image_id})')
    else:
      planned = _object(ref, instances, found)
      if planned:
        of_image.setdefault((ref.split, ref.image_id), []).append(planned)
  images: dict[str, list[PlannedImage]] = {split: [] for split in splits}
  missing: dict[str, bool] = {}
  for (split, image_id), objects in of_image.items():
    info = instances.images[image_id]
    file = images_dir / Path(info.file_name).name
    if info.file_name not in missing:  # an image of two splits is reported once
      missing[info.file_name] = not file.is_file()
      if missing[info.file_name]:
        found.add(problems.MISSING_FILE, info.file_name)
    if not missing[info.file_name]:
      images[split].append(_image(str(file), image_id, info, objects))
  return images


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
  if len(annotations) < len(ref.annotation_ids):
    return None
  names = dict.fromkeys(instances.categories[annotation.category_id] for annotation in annotations)
  return PlannedObject(
    ref.ref_id,
    ', '.join(names),
    ref.expressions,
    ref.annotation_ids,
    tuple(annotation.segmentation for annotation in annotations),
  )
