"""objects.csv: maps the ids in the prepared data and in an evaluation's samples.csv to the user's annotations."""

import csv
import io

from ditsam_jax.data.own.plan import Plan
from ditsam_jax.data.preparation.images import EncodedImage
from ditsam_jax.storage.bucket import AnyPath
from ditsam_jax.storage.files import write_text

_COLUMNS = (
  'object_id', 'image_id', 'split', 'image', 'place', 'id', 'category', 'mask_pixels', 'image_pixels', 'sentences'
)  # fmt: skip


class ObjectList:
  """Collects one row per object."""

  def __init__(self, plan: Plan):
    self._names = plan.names
    self._text = io.StringIO()
    self._writer = csv.writer(self._text, lineterminator='\n')
    self._writer.writerow(_COLUMNS)

  def observe(self, split: str, encoded: EncodedImage) -> None:
    """Adds the objects of one image."""
    for (one, _), area in zip(encoded.objects, encoded.areas):
      named = self._names[one.object_id]
      self._writer.writerow(
        (one.object_id, encoded.planned.image_id, split, named.image, named.place, named.id, one.category, area,
         encoded.height * encoded.width, ' | '.join(one.expressions))
      )  # fmt: skip

  def write(self, file: AnyPath) -> None:
    """Writes the table. Raises OSError if it cannot be written."""
    write_text(file, self._text.getvalue())
