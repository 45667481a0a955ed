"""Joins refs and instances into planned images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ditsam_jax.data.preparation import problems
from ditsam_jax.data.preparation.images import PlannedImage, PlannedMask, PlannedObject
from ditsam_jax.data.preparation.problems import Problems
from ditsam_jax.data.preparation.sentences import good_sentences
from ditsam_jax.data.refcoco.annotations import ImageInfo, Instances
from ditsam_jax.data.refcoco.images import CocoJpeg
from ditsam_jax.data.refcoco.refs import Ref
from ditsam_jax.limits import MAX_OBJECTS, MAX_PIXELS


def plan(
  refs: list[Ref],
  instances: Instances,
  images_dir: Path,
  splits: Mapping[str, Any],
  found: Problems,
  *,
  may_lack_target: bool = False,
) -> dict[str, list[PlannedImage]]:
  """Returns the images of each split in order of first occurrence, each with its refs in order.

  Adds problems to `found` and leaves their refs out. Reads neither masks nor images. With `may_lack_target`, refs may
  have no target, as in gRefCOCO.
  """
  ref_ids: set[int] = set()
  of_image: dict[tuple[str, int], list[PlannedObject]] = {}
  for ref in refs:
    if ref.ref_id in ref_ids:
      found.add(problems.REPEATED_ID, f'ref {ref.ref_id}')
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
        found.add(problems.MANY_OBJECTS, f'ref {ref.ref_id} (image {ref.image_id})')
      elif planned:
        objects.append(planned)
  images: dict[str, list[PlannedImage]] = {split: [] for split in splits}
  usable: dict[int, bool] = {}
  for (split, image_id), objects in of_image.items():
    info = instances.images[image_id]
    if image_id not in usable:  # an image in two splits is reported once
      fault = _fault(info, images_dir)
      usable[image_id] = not fault
      if fault:
        found.add(fault, f'{info.file_name} (image {image_id})')
    if usable[image_id]:
      images[split].append(_image(str(images_dir / info.file_name), image_id, info, objects))
  return images


def _fault(info: ImageInfo, images_dir: Path) -> str:
  """Returns the kind of problem of an image that can be detected without opening it; '' for none."""
  name = info.file_name
  if not name.isprintable() or set(name) & set('/\\:') or name in ('', '.', '..') or len(name.encode()) > 255:
    return problems.FILE_NAME
  if not (info.height > 0 < info.width and info.height * info.width <= MAX_PIXELS):
    return problems.IMAGE_SIZE
  return '' if (images_dir / name).is_file() else problems.MISSING_FILE


def _image(file: str, image_id: int, info: ImageInfo, objects: list[PlannedObject]) -> PlannedImage:
  return PlannedImage(CocoJpeg(file, info.height, info.width), image_id, tuple(objects))


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
  expressions = good_sentences(ref.expressions, f'ref {ref.ref_id}', found)
  if len(annotations) < len(ref.annotation_ids) or not expressions:
    return None
  names = dict.fromkeys(instances.categories[annotation.category_id] for annotation in annotations)
  return PlannedObject(
    ref.ref_id,
    ', '.join(names),
    expressions,
    tuple(
      PlannedMask(f'annotation {annotation_id} of ref {ref.ref_id}', annotation.segmentation)
      for annotation_id, annotation in zip(ref.annotation_ids, annotations)
    ),
  )
