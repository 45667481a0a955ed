"""Collects problems of annotations and images by kind, so that one run reports all."""

from ditsam_jax.limits import MAX_OBJECTS, MAX_PIXELS, MAX_SENTENCES
from ditsam_jax.terminal import printable
from ditsam_jax.tokenization import MAX_TEXT_BYTES

# All data sets.
MISSING_FILE = 'missing image files'
NO_MASK = 'objects without a mask'
MALFORMED_MASK = 'malformed masks'
LARGE_MASK = 'masks larger than their image'
NO_SENTENCE = 'objects without a sentence'
BLANK_SENTENCE = 'blank sentences'
LONG_SENTENCE = f'sentences of more than {MAX_TEXT_BYTES:,} bytes'
MANY_SENTENCES = f'objects with more than {MAX_SENTENCES:,} sentences'
MANY_OBJECTS = f'objects beyond the first {MAX_OBJECTS:,} of an image and split'
REPEATED_ID = 'objects with the id of an earlier one'

# RefCOCO's official downloads.
NO_JPEG = 'image files that do not decode as JPEG'
OTHER_SIZE = 'image files whose size differs from the annotations'
UNKNOWN_IMAGE = 'annotations of an image that is not listed'
UNKNOWN_ANNOTATION = 'refs to an annotation that instances.json lacks'
OTHER_IMAGE = "refs to another image's annotation"
UNKNOWN_CATEGORY = 'annotations of a category that is not listed'
UNKNOWN_SPLIT = 'refs of a split that the data set does not have'
NO_TARGET = 'refs without a target (ann_id -1), which only gRefCOCO has'
FILE_NAME = 'images whose file_name is not a plain file name'
IMAGE_SIZE = f'images whose height and width are not 1 to {MAX_PIXELS:,} pixels'

# Users' own data.
UNREADABLE = 'unreadable image files'
BAD_LINE = 'unreadable lines'
BAD_ENTRY = 'entries with a missing field or a value of the wrong type'
BAD_PATH = 'paths that are invalid or lead outside their folder'
MASK_FILE = 'missing or unreadable mask files'
MASK_SIZE = 'masks whose size differs from their image'
BAD_SPLIT = 'entries with a missing or invalid split'

_EXAMPLES = 3


class Problems:
  """Counts problems by kind and keeps the first examples of each."""

  def __init__(self):
    self.counts: dict[str, int] = {}
    self._examples: dict[str, list[str]] = {}

  def add(self, kind: str, what: str) -> None:
    """Adds a problem; `what` names the file, line, ref or annotation."""
    self.counts[kind] = self.counts.get(kind, 0) + 1
    examples = self._examples.setdefault(kind, [])
    if len(examples) < _EXAMPLES:
      examples.append(printable(what))

  def __len__(self) -> int:
    return sum(self.counts.values())

  def report(self) -> list[str]:
    """Returns one line per kind."""
    return [
      f'{number:,} {kind}: {", ".join(self._examples[kind])}{", ..." if number > _EXAMPLES else ""}'
      for kind, number in self.counts.items()
    ]
