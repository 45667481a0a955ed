"""Reads requests: bodies with limits on size and time, prompts as JSON, images as bytes or in a form."""

import asyncio
import base64
import binascii
import io
import os
import tempfile
from typing import IO, Any, NamedTuple

import numpy as np
from starlette.datastructures import UploadFile
from starlette.requests import Request

from ditsam_jax.errors import UserError
from ditsam_jax.inference.prompts import Prompt
from ditsam_jax.inference.segmenter import Segmenter
from ditsam_jax.serving.limits import Limits
from ditsam_jax.serving.refusals import Refused
from ditsam_jax.storage.files import parse_json
from ditsam_jax.terminal import listed, printable

_KEYS = ('text', 'points', 'labels', 'box', 'mask', 'multimask', 'low_res')


class Asked(NamedTuple):
  """A client's prompt.

  Attributes:
    prompt: the checked prompt.
    low_res: whether to return low-resolution logits, which can be sent as a mask prompt.
  """

  prompt: Prompt
  low_res: bool


async def read_json(request: Request, limits: Limits) -> Any:
  """Reads a request's body as JSON. Raises Refused or UserError."""
  body = bytearray()
  await _receive(request, limits.request_bytes, limits.upload_seconds, body.extend)
  return parsed(bytes(body))


async def read_file(request: Request, limits: Limits) -> io.BufferedReader:
  """Reads a request's body into an unnamed file, positioned at its start. Raises Refused; UserError if it is empty."""
  with tempfile.TemporaryFile() as file:
    size = await _receive(request, limits.upload_bytes, limits.upload_seconds, file.write)
    if not size:
      raise UserError("the request's body is empty: expected the bytes of an image file")
    file.flush()
    return _again(file)


async def read_form(request: Request, limits: Limits) -> tuple[io.BufferedReader, str | None]:
  """Reads the file `image` and the field `prompt` of a form (multipart/form-data). Raises Refused or UserError."""
  most = limits.upload_bytes + limits.request_bytes
  _check_length(request, most)
  left = most

  async def receive():
    nonlocal left
    message = await request.receive()
    left -= len(message.get('body', b''))
    if left < 0:
      raise _too_large(most)
    return message

  metered = Request(request.scope, receive)
  try:
    async with asyncio.timeout(limits.upload_seconds):
      form = await metered.form(max_files=1, max_fields=4, max_part_size=limits.request_bytes)
  except TimeoutError as error:
    raise _too_slow(limits.upload_seconds) from error
  try:
    image, prompt = form.get('image'), form.get('prompt')
    unknown = [name for name in form if name not in ('image', 'prompt')]
    if unknown:
      raise UserError(f'form field {listed(unknown)} is unknown; expected the file image and the text prompt')
    if not isinstance(image, UploadFile):
      raise UserError('the form has no file named image')
    if isinstance(prompt, UploadFile):
      raise UserError('form field prompt is a file; expected text, the JSON of a prompt')
    if not image.size:
      raise UserError('the file image is empty: expected an image file')
    if image.size > limits.upload_bytes:
      raise _too_large(limits.upload_bytes)
    return _again(image.file), prompt
  finally:
    await form.close()


def is_form(request: Request) -> bool:
  """Returns whether a request's body is multipart/form-data."""
  return request.headers.get('content-type', '').partition(';')[0].strip().lower() == 'multipart/form-data'


def parsed(data: bytes, name: str = 'the body') -> Any:
  """Parses strict JSON; messages call it `name`. Raises UserError."""
  try:
    return parse_json(data)
  except ValueError as error:
    raise UserError(f'{name} {error}') from error


def asked(content: Any, segmenter: Segmenter, limits: Limits) -> Asked:
  """Returns a prompt from JSON, see docs/serving.md. Raises UserError."""
  if not isinstance(content, dict):
    raise UserError(f'a prompt of type {type(content).__name__}: expected a JSON object with any of {", ".join(_KEYS)}')
  if unknown := [key for key in content if key not in _KEYS]:
    raise UserError(f'prompt key {listed(unknown)} is unknown; expected {", ".join(_KEYS)}')
  text, low_res = content.get('text'), content.get('low_res', False)
  if isinstance(text, str) and len(text.encode()) > limits.text_bytes:
    raise UserError(f'text of {len(text.encode()):,} bytes: expected at most {limits.text_bytes:,}')
  if not isinstance(low_res, bool):
    raise UserError(f'low_res {printable(low_res, 40)}: expected true or false')
  for name in ('points', 'labels', 'box'):
    _check_small(name, content.get(name), 4 * limits.points + 4)
  points = content.get('points')
  if isinstance(points, list) and len(points) > limits.points:
    raise UserError(f'{len(points):,} points: expected at most {limits.points} in one prompt')
  multimask = content.get('multimask', False)
  mask = _mask(content.get('mask'), 4 * segmenter.config.grid)
  return Asked(
    segmenter.prompt(Prompt(text, points, content.get('labels'), content.get('box'), mask, multimask)), low_res
  )


def prompts_of(content: Any, segmenter: Segmenter, limits: Limits) -> list[Asked]:
  """Returns the prompts from a JSON prompt or a list of them. Raises UserError."""
  if not isinstance(content, list):
    return [asked(content, segmenter, limits)]
  if not 1 <= len(content) <= limits.prompts:
    raise UserError(f'{len(content):,} prompts: expected 1 to {limits.prompts} in one request')
  found = []
  for number, each in enumerate(content, 1):
    try:
      found.append(asked(each, segmenter, limits))
    except UserError as error:
      raise UserError(f'prompt {number}: {error}') from error
  return found


def phrase(content: Any, segmenter: Segmenter, limits: Limits) -> str | None:
  """Returns the text of `{"text": ...}`, None if it is missing. Raises UserError."""
  if not isinstance(content, dict) or set(content) - {'text'}:
    raise UserError('expected {"text": a phrase}, or {} for everything')
  return None if content.get('text') is None else asked(content, segmenter, limits).prompt.text


def encode_logits(logits: np.ndarray) -> str:
  """Encodes logits, f32 [S/4, S/4], as base64 of little-endian bytes; `asked` accepts them as a mask."""
  return base64.b64encode(np.ascontiguousarray(logits, '<f4').tobytes()).decode('ascii')


def _mask(value: Any, side: int) -> Any:
  if not isinstance(value, str):
    return value  # numbers; `prompts.checked` validates them
  try:
    data = base64.b64decode(value, validate=True)
  except (ValueError, binascii.Error) as error:
    raise UserError('mask: not base64; expected the low_res of an earlier answer') from error
  if len(data) != 4 * side * side:
    raise UserError(f'mask of {len(data):,} bytes: expected {4 * side * side:,}, {side} x {side} little-endian floats')
  return np.frombuffer(data, '<f4').reshape(side, side)


def _check_small(name: str, value: Any, most: int) -> None:
  """Raises UserError for too many numbers, before NumPy converts them."""
  count, waiting = 0, [value]
  while waiting:
    each = waiting.pop()
    count += 1
    if count > most:
      raise UserError(f'{name}: more than {most} numbers')
    if isinstance(each, list):
      waiting.extend(each)


def _again(file: IO[bytes]) -> io.BufferedReader:
  """Reopens a file at its start; the result stays open when `file` is closed."""
  again = os.fdopen(os.dup(file.fileno()), 'rb')
  again.seek(0)
  return again


async def _receive(request: Request, most: int, seconds: float, write) -> int:
  _check_length(request, most)
  size = 0
  try:
    async with asyncio.timeout(seconds):
      async for chunk in request.stream():
        size += len(chunk)
        if size > most:
          raise _too_large(most)
        write(chunk)
  except TimeoutError as error:
    raise _too_slow(seconds) from error
  return size


def _check_length(request: Request, most: int) -> None:
  length = request.headers.get('content-length', '')
  if length.isdecimal() and int(length) > most:
    raise _too_large(most)


def _too_large(most: int) -> Refused:
  return Refused(413, f'the body is larger than {most:,} bytes')


def _too_slow(seconds: float) -> Refused:
  return Refused(408, f'the body did not arrive within {seconds:g} seconds')
