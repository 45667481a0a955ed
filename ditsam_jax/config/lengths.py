"""Lengths in updates, derived last: after all overrides, from the prepared data."""

from collections.abc import Callable

from ml_collections import ConfigDict

from ditsam_jax.config.checks import check, check_warmup
from ditsam_jax.config.run import MOST_STEPS
from ditsam_jax.data import datasets
from ditsam_jax.errors import UserError


def resolve(config: ConfigDict, samples: Callable[[], int]) -> ConfigDict:
  """A copy in which total_steps, warmup_steps, eval_every and checkpoint_every are numbers, and epochs is None.

  Args:
    config: as `config.files.load` gives it.
    samples: of the training split that make an epoch; called only where a length depends on it, and once.

  Raises:
    UserError: as `checks.check`; a warm-up as long as the training; more updates than can be counted.
  """
  run = check(config)
  config = config.copy_and_resolve_references()
  epoch = 0  # updates in which every sample is seen once; the last, smaller batch counts
  if None in (run.total_steps, run.eval_every, run.checkpoint_every):
    epoch = max(1, -(-samples() // run.data.batch_size))
  if run.epochs is not None:  # then total_steps is None, see `check`
    config.total_steps, config.epochs = max(1, round(run.epochs * epoch)), None
    if config.total_steps > MOST_STEPS:
      raise UserError(
        f'config.epochs is {run.epochs:g}, {config.total_steps:,} updates; expected at most {MOST_STEPS:,}'
      )
  if run.optimizer.warmup_steps is None:
    warmup = round(run.optimizer.warmup_share * config.total_steps)
    config.optimizer.warmup_steps = min(warmup, config.total_steps - 1)
  check_warmup(config.optimizer.warmup_steps, config.total_steps)
  for name in ('eval_every', 'checkpoint_every'):
    if config[name] is None:
      config[name] = epoch
  return config


def samples_without_data(config: ConfigDict) -> int:
  """How many samples an epoch has, by the prepared data's counts, or as published where there is none.

  Raises:
    UserError: neither is known.
  """
  data = config.data
  size = datasets.size(data.dataset, data.data_dir, 'train')
  if size is None:
    raise UserError(
      f'the size of the training split of {data.dataset!r} is unknown until it is made; give '
      f'--config.total_steps=N (and eval_every, checkpoint_every) instead of epochs'
    )
  return size.objects if config.task == 'text' else size.images
