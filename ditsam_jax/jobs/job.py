"""A prediction job: checks all requests once, then yields the unfinished ones."""

import json
from array import array
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from ditsam_jax.errors import UserError
from ditsam_jax.jobs.file_names import FileNames
from ditsam_jax.jobs.json_lines import JsonLines
from ditsam_jax.jobs.outputs import ResultFiles
from ditsam_jax.jobs.requests import Request, digest
from ditsam_jax.parallel import distributed
from ditsam_jax.terminal import printable


class Source(Protocol):
  """Requests that can be iterated repeatedly: `Combinations` or `PromptFile`."""

  def __iter__(self) -> Iterator[Request]: ...

  def chosen(self, todo: np.ndarray) -> Iterator[Request]:
    """Yields the requests for which `todo` is true."""
    ...


class Job:
  """Tracks which requests are left to do, in a few bytes per request.

  Attributes:
    repeated: bool [N], requests that duplicate an earlier one; they are done once.
    todo: bool [N], requests left to do on this host.
  """

  def __init__(self, source: Source, names: FileNames | None) -> None:
    """Checks all requests, and registers them with `names`.

    Raises:
      UserError: a request is invalid, an id is used twice, or there are no requests.
    """
    self._source = source
    keys, images = array('Q'), array('Q')
    ids, owners = array('Q'), array('Q')
    for request in source:
      keys.append(request.key())
      images.append(digest(request.image))
      if names is not None:
        names.see(request)
      if request.id is not None:
        ids.append(digest(json.dumps(request.id)))
        owners.append(request.number)
    if not keys:
      raise UserError('no requests: the file of prompts is empty')
    self._keys, self._images = np.array(keys), np.array(images)
    self._ids, self._owners = np.array(ids, np.uint64), np.array(owners, np.int64)
    self.repeated = np.ones(len(keys), bool)
    self.repeated[np.unique(self._keys, return_index=True)[1]] = False
    self.todo = ~self.repeated
    self._check_ids()
    if names is not None:
      names.settle(self.repeated)

  def __len__(self) -> int:
    return len(self._keys)

  @property
  def count(self) -> int:
    """Number of results: requests without duplicates."""
    return len(self) - int(np.count_nonzero(self.repeated))

  @property
  def left(self) -> int:
    """Number of requests left to do on this host."""
    return int(np.count_nonzero(self.todo))

  def requests(self) -> Iterator[Request]:
    """Yields the requests left to do, in order. Raises UserError if they have changed since they were checked."""
    left = self.left
    for request in self._source.chosen(self.todo):
      if request.key() != int(self._keys[request.number]):
        raise UserError(f'{request}: changed while this command ran; rerun the command')
      left -= 1
      yield request
    if left:
      raise UserError('the prompts file became shorter while this command ran; rerun the command')

  def share(self, host: int, hosts: int) -> None:
    """Restricts the job to this host's share: every n-th image, keeping consecutive requests for an image together."""
    turns = np.cumsum(np.append(False, self._images[1:] != self._images[:-1]))
    self.todo &= turns % hosts == host

  def skip_done(self, lines: JsonLines) -> None:
    """Skips requests in a file of results.

    Raises:
      UserError: an id there belongs to another request, or pictures of results there are missing.
    """
    done = np.isin(self._keys, lines.keys)
    changed = self._owners[np.isin(self._ids, lines.ids) & ~done[self._owners]]
    if len(changed):
      request = self._at(int(changed[0]))
      raise UserError(
        f'{request.place}: id {json.dumps(request.id)} is already in {lines.path} with another image or prompt; choose '
        f'another --json'
      )
    if (lost := np.isin(self._keys, lines.lost)).any():
      raise UserError(
        f'{lines.path} has the result of {self._at(int(lost.argmax()))}, but its picture is not in '
        f'{printable(lines.pictures)}; give the --output that has it, or --no-pictures, or choose another --json'
      )
    self.todo &= ~done

  def skip_pictured(self, output: ResultFiles, *, redo: bool) -> None:
    """Skips requests whose pictures exist, unless `redo`. Raises UserError if other files are in their place."""
    for request in self._source.chosen(self.todo):
      if output.is_done(request) and not redo:
        self.todo[request.number] = False

  def report_skipped(self) -> None:
    """Reports the number of repeated requests and of finished ones."""
    repeated, done = len(self) - self.count, self.count - self.left
    if repeated:
      distributed.tell(f'{repeated:,} duplicate request{"s" if repeated > 1 else ""} skipped')
    if done:
      distributed.tell(f'{done:,} result{"s" if done > 1 else ""} already done')

  def _check_ids(self) -> None:
    if len(np.unique(self._ids)) == len(self._ids):
      return
    _, first, inverse = np.unique(self._ids, return_index=True, return_inverse=True)
    again = np.flatnonzero(first[inverse] != np.arange(len(self._ids)))[0]
    one, other = self._at(int(self._owners[first[inverse[again]]])), self._at(int(self._owners[again]))
    line = one.place.rsplit(' ', 1)[1]
    raise UserError(f'{other.place}: id {json.dumps(other.id)} is already used on line {line}; use unique ids')

  def _at(self, number: int) -> Request:
    only = np.zeros(len(self), bool)
    only[number] = True
    return next(self._source.chosen(only))
