"""The vocabulary of a converted model: from --vocab, the companion JSON, or the weights' folder."""

from pathlib import Path

from ditsam_jax.convert.companion import Companion
from ditsam_jax.errors import UserError
from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.storage.vocabulary import check_lower_case, check_settings, read_vocabulary
from ditsam_jax.terminal import printable

FILES = ('vocab.txt', 'tokenizer.json')


def find_vocabulary(
  config: DitSamConfig, given: Path | None, weights: Path, companion: Companion | None
) -> list[str] | None:
  """Returns the word pieces of a model's tokenizer, or None if they are unknown.

  Args:
    config: the model's config.
    given: the value of --vocab.
    weights: the text encoder's file or folder; a vocab.txt or tokenizer.json next to it is used.
    companion: the weights' companion, which may contain the vocabulary.

  Raises:
    UserError: the file is missing, not a vocabulary, has another number of words than the text encoder, or belongs to
      another tokenizer than BERT's lower-casing one.
  """
  if config.text_encoder is None:
    if given is not None:
      raise UserError(f'--vocab={printable(given)}: a plain SAM takes no text; omit it')
    return None
  if companion is not None and companion.vocabulary is not None:
    if given is not None and list(read_vocabulary(given)) != companion.vocabulary:
      raise UserError(
        f'--vocab={printable(given)} has other words than {printable(companion.path)}, '
        f'which has {len(companion.vocabulary)}; omit one of them'
      )
    return companion.vocabulary
  folder = weights if weights.is_dir() else weights.parent
  file = given or next((folder / name for name in FILES if (folder / name).exists()), None)
  if file is None:
    return None
  pieces = list(read_vocabulary(file))
  if len(pieces) != config.text_encoder.vocab_size:
    raise UserError(
      f'vocabulary {printable(file)} has {len(pieces)} words, the text encoder {config.text_encoder.vocab_size}; give '
      f'the vocab.txt it was trained with (--vocab)'
    )
  check_settings(file.parent)
  check_lower_case(pieces, file)
  return pieces
