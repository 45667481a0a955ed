"""What a refusal has to be like."""

import pytest

from ditsam_jax.errors import UserError


def refusal(call, *arguments, **options) -> str:
  """What a `UserError` says: one line that a terminal may show."""
  with pytest.raises(UserError) as error:
    call(*arguments, **options)
  message = str(error.value)
  assert message.isprintable() and len(message) < 700
  return message
