"""Problems of annotations and images, collected by kind, so one run reports all of them."""

from ditsam_jax.limits import MAX_OBJECTS, MAX_PIXELS, MAX_SENTENCES
from ditsam_jax.terminal import printable
from ditsam_jax.tokenization import MAX_TEXT_BYTES

# Of every kind of data.
MISSING_FILE = 'image files that are missing'
NO_MASK = 'objects without a mask'
MALFORMED_MASK = 'masks that are malformed'
LARGE_MASK = 'masks larger than their image'
NO_SENTENCE = 'objects without a sentence'
BLANK_SENTENCE = 'sentences that are blank'
LONG_SENTENCE = f'sentences of more than {MAX_TEXT_BYTES:,} bytes'
MANY_SENTENCES = f'objects with more than {MAX_SENTENCES:,} sentences'
MANY_OBJECTS = f'objects beyond the first {MAX_OBJECTS:,} of an image and split'
REPEATED_ID = 'objects with the id of an earlier one'

# Of RefCOCO's official downloads.
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

# Of users' own data.
UNREADABLE = 'image files that cannot be read'
BAD_LINE = 'lines that cannot be read'
BAD_ENTRY = 'entries with a missing field or a value of another type'
BAD_PATH = 'paths that lead outside of their folder, or are no paths'
MASK_FILE = 'mask files that are missing or cannot be read'
MASK_SIZE = 'masks of another size than their image'
BAD_SPLIT = 'entries with no split, or one that is not a plain word'

_EXAMPLES = 3


class Problems:
  """How many of each kind, and the first few of them: memory does not grow with their number."""

  def __init__(self):
    self.counts: dict[str, int] = {}
    self._examples: dict[str, list[str]] = {}

  def add(self, kind: str, what: str) -> None:
    """`what` names the file, line, ref or annotation."""
    self.counts[kind] = self.counts.get(kind, 0) + 1
    examples = self._examples.setdefault(kind, [])
    if len(examples) < _EXAMPLES:
      examples.append(printable(what))

  def __len__(self) -> int:
    return sum(self.counts.values())

  def report(self) -> list[str]:
    """A line a kind."""
    return [
      f'{number:,} {kind}: {", ".join(self._examples[kind])}{", ..." if number > _EXAMPLES else ""}'
      for kind, number in self.counts.items()
    ]
