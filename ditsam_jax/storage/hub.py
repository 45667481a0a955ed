"""Models on the Hugging Face Hub: hf://OWNER/NAME[@REVISION][/PATH], downloaded once into huggingface_hub's cache.

Without network, the cached files are used. HF_TOKEN, HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE work as documented there.
"""

import functools
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from tqdm.asyncio import tqdm_asyncio

from ditsam_jax.errors import UserError
from ditsam_jax.terminal import printable, say

SCHEME = 'hf://'
EXPECTED = 'expected hf://OWNER/NAME, hf://OWNER/NAME@REVISION or hf://OWNER/NAME@REVISION/PATH'

_MODEL = ('model.json', 'vocab.txt', 'tokenizer.json', 'model.safetensors', 'weights/*', 'leftovers/*')
_NAME = r'[A-Za-z0-9][A-Za-z0-9._-]*'
_ADDRESS = re.compile(
  rf'hf://(?P<repository>{_NAME}/{_NAME})(@(?P<revision>refs/\w+/[\w.-]+|[\w.%+-]+))?(/(?P<path>[^\0]+?))?/*'
)


class Address(NamedTuple):
  """A place on the Hub.

  Attributes:
    text: the address as given.
    repository: 'owner/name'.
    revision: a branch, a tag or a commit; None for the default branch.
    path: a file or folder in the repository; '' for its top.
  """

  text: str
  repository: str
  revision: str | None
  path: str


def is_address(given: str | os.PathLike) -> bool:
  """Whether a text is meant as an address of the Hub. Path('hf://a/b') has lost a slash, and counts too."""
  return str(given).startswith('hf:/')


def parse(given: str | os.PathLike) -> Address:
  """Parses hf://OWNER/NAME[@REVISION][/PATH]. Raises UserError if it is something else."""
  text = str(given)
  if not text.startswith(SCHEME):
    text = text.replace('hf:/', SCHEME, 1)
  match = _ADDRESS.fullmatch(text)
  parts = match['path'].split('/') if match and match['path'] else []
  if match is None or any(part in ('', '.', '..') for part in parts) or re.search(r'--|\.\.', match['repository']):
    raise UserError(f"'{printable(given)}' is not an address on the Hub: {EXPECTED}")
  return Address(text, match['repository'], match['revision'], '/'.join(parts))


def address(given: str) -> str:
  """Returns the text unchanged if it is an address. Raises UserError otherwise."""
  parse(given)
  return given


@functools.cache  # a process reads many files of a model, and should see a single revision
def model_folder(given: str) -> Path:
  """Downloads a model of this library, unless it is cached; returns its folder.

  Raises:
    UserError: the model cannot be found or downloaded, or is not of this library.
  """
  where = parse(given)
  folder = download(where, [_under(where.path, name) for name in _MODEL]) / where.path
  if not (folder / 'model.json').is_file():
    raise UserError(
      f"'{printable(given)}' is not a ditsam_jax model: it has no model.json; convert PyTorch weights first: "
      f'python convert/torch_to_flax.py --input={printable(given)} --output=models/converted'
    )
  return folder


def weights(given: str | os.PathLike, choices: Sequence[Sequence[str]], settings: Sequence[str]) -> Path:
  """Downloads a file, or a folder's weights, unless they are cached; returns the local path.

  Args:
    given: an address.
    choices: names of weight files, with * for any characters; the first choice that a folder has is downloaded.
    settings: names of files to download with them, from the folder or a file's folder. FILE.json comes with FILE too.

  Raises:
    UserError: nothing is there, or it cannot be downloaded.
  """
  where = parse(given)
  parent = '/'.join(where.path.split('/')[:-1])
  beside = [where.path, f'{where.path}.json', *(_under(parent, name) for name in settings)] if where.path else []
  for names in choices:
    path = download(where, [_under(where.path, name) for name in (*names, *settings)] + beside) / where.path
    if path.is_file() or any(file for name in names for file in path.glob(name)):
      return path
  raise UserError(
    f"'{printable(given)}' holds no weights ({', '.join(name for names in choices for name in names[:1])}); "
    f'look at the repository, and give the file: hf://OWNER/NAME/FILE'
  )


def _under(folder: str, name: str) -> str:
  return f'{folder}/{name}' if folder else name


def download(where: Address, patterns: Sequence[str]) -> Path:
  """Downloads the matching files of a repository, unless they are cached; returns its local folder.

  Raises:
    UserError: the repository or revision does not exist, access is refused, or the Hub cannot be reached and the files
      are not cached.
  """
  try:
    from huggingface_hub import constants, snapshot_download
  except ModuleNotFoundError as error:
    raise UserError(
      f"{printable(where.text)} needs huggingface_hub; install the extra 'hub': pip install 'ditsam_jax[hub]'"
    ) from error

  def get(local_files_only: bool) -> str:
    return snapshot_download(
      where.repository,
      revision=where.revision,
      allow_patterns=list(patterns),
      tqdm_class=None if sys.stderr.isatty() else _Silent,
      local_files_only=local_files_only,
    )

  try:
    get(True)
  except Exception:  # not cached, or only in part
    if not constants.HF_HUB_OFFLINE:
      say(f'downloading {printable(where.text)}')
  try:
    return Path(get(False))
  except Exception as error:
    _explain(where, error)


class _Silent(tqdm_asyncio):  # the class that huggingface_hub expects
  """A progress bar for logs: none. huggingface_hub would print one of its bars there."""

  def __init__(self, *arguments, **settings):
    super().__init__(*arguments, **settings | {'disable': True})


def _explain(where: Address, error: Exception) -> NoReturn:
  """Raises UserError for an error of huggingface_hub, whose messages have many lines."""
  from huggingface_hub import errors

  name, repository = f"'{printable(where.text)}'", printable(where.repository)
  answers = [one for one in (error, error.__cause__) if isinstance(one, errors.HfHubHTTPError)]
  refusal = next((one for one in answers if one.response.status_code in (401, 403)), None)
  match error:
    case errors.GatedRepoError():
      reason = (
        f'access to {repository} must be requested on its page on the Hub; then set HF_TOKEN, or run `hf auth login`'
      )
    case errors.RepositoryNotFoundError():
      reason = (
        f'there is no model {repository} on the Hub, or it is private; correct the name, or set HF_TOKEN, or run '
        f'`hf auth login`'
      )
    case errors.RevisionNotFoundError():
      reason = f'{repository} has no branch, tag or commit {printable(where.revision)}; correct it'
    case _ if refusal is not None:
      reason = (
        f'the Hub refuses the token or the access ({refusal.response.status_code}, '
        f'{_line(refusal.server_message or refusal)}); renew HF_TOKEN, or run `hf auth login`'
      )
    case errors.LocalEntryNotFoundError():  # with its subclass for files that are cached in part
      cause = error.__cause__
      if cause is None or isinstance(cause, errors.OfflineModeIsEnabled):
        why = 'HF_HUB_OFFLINE is set'
      else:
        why = f'the Hub cannot be reached ({_line(cause)})'
      reason = f'{why}, and the files are not in the cache; connect and try again, or give the folder of a copy'
    case OSError(errno=int()):
      reason = f'cannot be stored: {error.strerror or error}; free some space, or set HF_HOME to another folder'
    case _:
      reason = f'cannot be downloaded ({_line(error)}); try again'
  raise UserError(f'{name}: {reason}') from error


def _line(error: BaseException | str) -> str:
  """The first line of an error, without the token, which a server may repeat."""
  from huggingface_hub import get_token

  line = (str(error).strip().splitlines() or [type(error).__name__])[0]
  return printable(line.replace(get_token() or '\n', '...'))
