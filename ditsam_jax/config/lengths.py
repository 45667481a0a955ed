"""Converts lengths to updates: the last step, after all overrides, using the prepared data."""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from ditsam_jax.config.checks import check, check_warmup
from ditsam_jax.config.run import MOST_STEPS, ResolvedOptimizerConfig, ResolvedRunConfig, RunConfig, reads_text
from ditsam_jax.data import datasets
from ditsam_jax.errors import UserError


def resolve(config: ConfigDict, samples: Callable[[], int]) -> ResolvedRunConfig:
  """Validates a config and converts all lengths (training, warm-up, evaluation, checkpoints) to updates.

  Args:
    config: the result of `config.files.load`.
    samples: returns the number of training samples per epoch; called at most once, and only if a length depends on it.

  Raises:
    UserError: see `checks.check`; also if the warm-up is as long as the training, or there are too many updates.
  """
  run = check(config)
  epoch = 0  # updates per epoch, including the last, smaller batch
  if None in (run.total_steps, run.eval_every, run.checkpoint_every):
    epoch = max(1, -(-samples() // run.data.batch_size))
  total_steps = _total_steps(run, epoch)
  warmup_steps = run.optimizer.warmup_steps
  if warmup_steps is None:
    warmup_steps = min(round(run.optimizer.warmup_share * total_steps), total_steps - 1)
  check_warmup(warmup_steps, total_steps)
  lengths: dict[str, Any] = {
    'optimizer': ResolvedOptimizerConfig(**dict(vars(run.optimizer), warmup_steps=warmup_steps)),
    'epochs': None,
    'total_steps': total_steps,
    'eval_every': epoch if run.eval_every is None else run.eval_every,
    'checkpoint_every': epoch if run.checkpoint_every is None else run.checkpoint_every,
  }
  return ResolvedRunConfig(**(vars(run) | lengths))


def samples_without_data(config: RunConfig) -> int:
  """Returns the number of samples per epoch: that of the prepared data, or else the published one.

  Raises:
    UserError: neither is known.
  """
  data = config.data
  size = datasets.size(data.dataset, data.data_dir, 'train')
  if size is None:
    raise UserError(
      f'the size of the training split of {data.dataset!r} is unknown until it is prepared; give '
      f'--config.total_steps=N (and eval_every, checkpoint_every) instead of epochs'
    )
  return size.objects if reads_text(config.task) else size.images


def _total_steps(run: RunConfig, epoch: int) -> int:
  if run.total_steps is not None:
    return run.total_steps
  assert run.epochs is not None  # see `check`
  total_steps = max(1, round(run.epochs * epoch))
  if total_steps > MOST_STEPS:
    raise UserError(f'config.epochs is {run.epochs:g}, {total_steps:,} updates; expected at most {MOST_STEPS:,}')
  return total_steps
