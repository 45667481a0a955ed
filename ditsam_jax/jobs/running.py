"""Runs the remaining requests of a job: reads ahead, writes in the background, and reports progress."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from ditsam_jax.errors import UserError
from ditsam_jax.jobs.background import images_ahead, in_order
from ditsam_jax.jobs.job import Job
from ditsam_jax.jobs.json_lines import JsonLines
from ditsam_jax.jobs.outputs import OutputLost, ResultFiles, Written
from ditsam_jax.jobs.progress import Progress, Remarks
from ditsam_jax.jobs.requests import Request
from ditsam_jax.parallel import distributed
from ditsam_jax.parallel.watch import Watch
from ditsam_jax.storage.files import make_output_folder
from ditsam_jax.terminal import say

R = TypeVar('R')
R_contra = TypeVar('R_contra', contravariant=True)
Asked = Iterator[tuple[Request, np.ndarray]]  # the image, uint8 [h, w, 3]


class Writer(Protocol[R_contra]):
  """Writes results; several threads may share one."""

  def write(self, request: Request, result: R_contra, /) -> Written:
    """Writes a result. Raises UserError, or OutputLost if later results would fail too."""
    ...


def run_share(
  job: Job,
  output: ResultFiles,
  how: dict[str, Any],
  work: Callable[[JsonLines | None], bool],
  *,
  json: str | None,
  folder: str | None,
) -> bool:
  """Skips finished requests, runs this host's share of the rest, and waits for the other hosts.

  Args:
    job: the job.
    output: writes the files of a result.
    how: the settings that results are made with, see `made_by`.
    work: runs the remaining requests, with the JSON lines if there are any; returns whether any failed.
    json: file of JSON lines; None for none.
    folder: folder of pictures; None for none.

  Returns:
    Whether any request failed on this host.
  """
  host, hosts = distributed.place()
  with Watch(), contextlib.ExitStack() as opened:
    lines = None
    if json:
      lines = opened.enter_context(JsonLines(Path(json), how, None if folder is None else Path(folder), host, hosts))
      job.skip_done(lines)
    if folder is not None:
      make_output_folder(Path(folder))
      if any(os.scandir(folder)):
        job.skip_pictured(output, redo=lines is not None)
    job.report_skipped()
    job.share(host, hosts)
    failed = job.left > 0 and work(lines)
    distributed.wait_for_all('finished')
  return failed


def run(
  description: str,
  job: Job,
  output: Writer[R],
  lines: JsonLines | None,
  results: Callable[[Asked], Iterator[tuple[Request, R]]],
  size: Callable[[R], int],
  refused: Callable[[Request, np.ndarray], UserError | None] = lambda request, image: None,
) -> bool:
  """Runs the remaining requests of `job`; returns whether any failed.

  Args:
    description: what the progress bar calls the work.
    job: the job.
    output: writes the files of a result.
    lines: receives one line per result; None prints a summary of each instead.
    results: yields the results of requests with readable images, in order.
    size: returns the bytes that a result occupies until written.
    refused: returns an error if a request does not apply to its image.
  """
  with Progress(job.left, description) as progress:
    remarks = Remarks(progress)

    def fail(request: Request, error: UserError) -> None:
      if isinstance(error, OutputLost):
        raise error
      remarks.failure(f'{request}: {error}' if request.place else str(error))
      progress.step(failed=True)

    def asked() -> Asked:
      for request, image in images_ahead(job.requests()):
        if isinstance(image, UserError):
          fail(request, image)
        elif problem := refused(request, image):
          fail(request, problem)
        else:
          yield request, image

    written = in_order(lambda item: output.write(*item), results(asked()), lambda item: size(item[1]))
    with contextlib.closing(written):
      for (request, _), outcome in written:
        if isinstance(outcome, UserError):
          fail(request, outcome)
          continue
        if lines is None:
          progress.show(outcome.summary)
        else:
          lines.append(outcome.json_line)
        remarks.result(request.prompt.text, outcome.unknown, outcome.cut, outcome.is_empty)
        progress.step()
  for line in remarks.at_the_end():
    say(line)
  return progress.failed > 0
