"""Runs the remaining requests of a job: reads ahead, writes in the background, and reports progress."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

import numpy as np

from ditsam_jax.errors import UserError
from ditsam_jax.jobs.background import images_ahead, in_order
from ditsam_jax.jobs.job import Job
from ditsam_jax.jobs.json_lines import JsonLines
from ditsam_jax.jobs.outputs import OutputLost, Written
from ditsam_jax.jobs.progress import Progress, Remarks
from ditsam_jax.jobs.requests import Request
from ditsam_jax.terminal import say

R = TypeVar('R')
R_contra = TypeVar('R_contra', contravariant=True)
Asked = Iterator[tuple[Request, np.ndarray]]  # the image, uint8 [h, w, 3]


class Writer(Protocol[R_contra]):
  """Writes results; several threads may share one."""

  def write(self, request: Request, result: R_contra, /) -> Written:
    """Writes a result. Raises UserError, or OutputLost if later results would fail too."""
    ...


def run(
  job: Job,
  output: Writer[R],
  lines: JsonLines | None,
  results: Callable[[Asked], Iterator[tuple[Request, R]]],
  size: Callable[[R], int],
  refused: Callable[[Request, np.ndarray], UserError | None] = lambda request, image: None,
) -> bool:
  """Runs the remaining requests of `job`; returns whether any failed.

  Args:
    job: the job.
    output: writes the files of a result.
    lines: receives one line per result; None prints a summary of each instead.
    results: yields the results of requests with readable images, in order.
    size: returns the bytes that a result occupies until written.
    refused: returns an error if a request does not apply to its image.
  """
  with Progress(job.left) as progress:
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
