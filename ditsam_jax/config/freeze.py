"""Which parameters the field `freeze` keeps as they are."""

import re

from ditsam_jax.errors import UserError

# Names of model parts in `freeze`; anything else is a regular expression over parameter paths.
FREEZE_GROUPS = {
  'image_encoder': r'image_encoder\.(?!instruction\.)',  # SAM's pre-trained weights, not the text projections
  'text_encoder': r'text_encoder\.',
  'prompt_encoder': r'prompt_encoder\.',
  'mask_decoder': r'mask_decoder\.',
}


def freeze_patterns(freeze: str) -> dict[str, re.Pattern]:
  """Compiles comma-separated FREEZE_GROUPS or regular expressions, matched at the start of parameters' paths; by name.

  Raises:
    UserError: an invalid regular expression.
  """
  names = [name.strip() for name in freeze.split(',') if name.strip()]
  try:
    return {name: re.compile(FREEZE_GROUPS.get(name, name)) for name in names}
  except re.error as error:
    raise UserError(f'config.freeze {freeze!r} is not a regular expression: {error}') from error
