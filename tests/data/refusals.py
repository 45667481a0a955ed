"""Checks the form of error messages."""

import pytest

from ditsam_jax.errors import UserError


def refusal(call, *arguments, **options) -> str:
  """Calls a function that must raise UserError; returns its message, which must be one printable line."""
  with pytest.raises(UserError) as error:
    call(*arguments, **options)
  message = str(error.value)
  assert message.isprintable() and len(message) < 700
  return message
