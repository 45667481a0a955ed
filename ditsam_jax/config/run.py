"""All fields of a run, declared once. The defaults are the DIT release's recipe, as implemented in its code."""

import dataclasses
import json
from typing import Any

from ditsam_jax.config.first_prompts import FirstPromptConfig
from ditsam_jax.data import datasets
from ditsam_jax.data.augmentation import AugmentationConfig
from ditsam_jax.data.prompts import PromptConfig
from ditsam_jax.data.shapes import ScenesConfig
from ditsam_jax.errors import UserError
from ditsam_jax.fields import (
  BELOW_ONE,
  LARGEST,
  Choice,
  Flag,
  Kind,
  OrNone,
  Real,
  Text,
  Whole,
  declared,
  did_you_mean,
  group,
)
from ditsam_jax.limits import MAX_PROCESSES, MAX_THREADS
from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.models.execution import AUTO, REMAT
from ditsam_jax.ops.attention import IMPLEMENTATIONS
from ditsam_jax.parallel.sharding import MeshConfig
from ditsam_jax.storage import paths

MOST_STEPS = 1_000_000_000  # the counter of updates is a 32-bit integer

_STEPS = Whole(1, MOST_STEPS)
_POSITIVE = Real(0, LARGEST, above=True)


@dataclasses.dataclass(frozen=True)
class AnyPlace(Text):
  """A path on a disk or in a bucket."""

  what: str = 'a local path or gs://BUCKET/PATH'

  def accepts(self, value: Any) -> bool:
    return super().accepts(value) and paths.problem_anywhere(value) is None

  def hint(self, value: Any) -> str:
    reason = paths.problem_anywhere(value) if isinstance(value, str) else None
    return f'{reason}; ' if reason else ''


@dataclasses.dataclass(frozen=True)
class DataSetName(Kind):
  """A data set, optionally with a partition: 'refcocog/google'; or the user's own, which `checks.check` looks up."""

  @property
  def expected(self) -> str:
    names = ', '.join(datasets.NAMES)
    return f'one of {names}, optionally with a partition, such as refcocog/google, or the name of a prepared data set'

  def accepts(self, value: Any) -> bool:
    if type(value) is not str:
      return False
    try:
      datasets.check_name(value)
      return True
    except UserError:
      return False

  def parse(self, text: str) -> str:
    return text

  def hint(self, value: Any) -> str:
    return did_you_mean(value, datasets.NAMES)


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """The source of samples, and how they are read."""

  dataset: str = declared('refcoco', DataSetName(), 'Data set')
  data_dir: str = declared('data', AnyPlace(), 'Folder of prepared data sets')
  batch_size: int = declared(64, Whole(1, 1_048_576), 'Samples per update, over all devices')
  objects_per_image: int = declared(4, Whole(1, 64), "Prompts drawn per image, for task 'prompts'")
  threads: int = declared(8, Whole(1, MAX_THREADS), 'Threads that read and augment, per process')
  processes: int = declared(0, Whole(0, MAX_PROCESSES), 'Worker processes; 0 reads in the main process')
  in_memory: bool = declared(False, Flag(), 'Keep decoded pixels in memory: for small images that are read many times')
  prompts: PromptConfig = group(PromptConfig(), "First prompts, for task 'prompts'")
  augmentation: AugmentationConfig = group(AugmentationConfig(), 'Augmentation of training samples')
  add_words: str = declared(
    '',
    Text('words'),
    'Words to add to the vocabulary of init_from, separated by commas; from-data stands for all words of the training '
    'split that it cannot read',
  )
  scenes: ScenesConfig | None = group(None, 'Appearance of the shapes scenes', none='for other data sets')


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """Optimiser and learning rate: linear warm-up, then cosine decay."""

  name: str = declared(
    'adam', Choice(('adam', 'muon')), "'adam', or 'muon': Muon for the transformers' matrices, Adam for the rest"
  )
  learning_rate: float = declared(1e-4, _POSITIVE, 'Peak learning rate, at the end of the warm-up')
  warmup_start: float = declared(1e-7, Real(), 'Learning rate of the first update')
  min_learning_rate: float = declared(1e-6, Real(), 'Learning rate at the end')
  beta1: float = declared(0.9, BELOW_ONE, 'Decay of the first moment, the mean of gradients')
  beta2: float = declared(0.98, BELOW_ONE, 'Decay of the second moment, the mean of squared gradients')
  epsilon: float = declared(1e-9, _POSITIVE, "Added to Adam's denominator")
  weight_decay: float = declared(0.0, Real(), 'Decoupled weight decay of matrices')
  clip_norm: float = declared(0.15, Real(), 'Clips the global norm of the gradient to this; 0 turns clipping off')
  warmup_share: float = declared(3 / 40, BELOW_ONE, 'Warm-up as a fraction of all updates')
  warmup_steps: int | None = declared(
    None, OrNone(Whole(0, MOST_STEPS), 'warmup_share of total_steps'), 'Warm-up in updates; fewer than total_steps'
  )


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """Weights of the loss terms, see training/loss.py."""

  bce: float = declared(1.0, Real(), 'Binary cross-entropy of pixels')
  dice: float = declared(0.0, Real(), 'Dice loss of masks')
  iou: float = declared(0.0, Real(), 'Squared error of the predicted IoU')


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """A whole run."""

  task: str = declared(
    'text',
    Choice(('text', 'prompts', 'interactive')),
    "'text': one sentence per sample; 'prompts': points and boxes, to pre-train a SAM; 'interactive': sentences, "
    'points and boxes together',
  )
  rounds: int = declared(
    1,
    Whole(1, 64),
    "Prompts of a target in one update, for tasks 'prompts' and 'interactive': after the first, each adds a click "
    'where the last mask was wrong, and that mask; the last of three or more adds the mask only',
  )
  first_prompts: FirstPromptConfig = group(FirstPromptConfig(), "First prompts, for task 'interactive'")
  seed: int = declared(0, Whole(0, 2**31 - 1), 'Random seed of initial weights, data order and dropout')
  init_from: str = declared(
    '',
    AnyPlace(),
    "Saved model to start from: a folder or a shipped model's name; '' starts from scratch",
  )
  freeze: str = declared(
    '',
    Text('names of parts or regular expressions'),
    'Parts not trained: image_encoder, text_encoder, prompt_encoder, mask_decoder or regular expressions over '
    'parameter names, separated by commas',
  )
  # None in a ConfigDict alone: `checks.check` puts the model of init_from there.
  model: DitSamConfig = group(DitSamConfig(), 'The model', none='that of init_from')
  data: DataConfig = group(DataConfig(), 'The data')
  optimizer: OptimizerConfig = group(OptimizerConfig(), 'The optimiser')
  epochs: float | None = declared(
    40.0, OrNone(Real(0, 1_000_000, above=True), 'total_steps is given'), 'Training length in epochs'
  )
  total_steps: int | None = declared(None, OrNone(_STEPS, 'epochs of the training split'), 'Training length in updates')
  loss: LossConfig = group(LossConfig(), 'Weights of the loss terms')
  ema: float = declared(0.9997, BELOW_ONE, 'Final decay of the moving average of the weights')
  mesh: MeshConfig = group(MeshConfig(), 'How devices share the work')
  dtype: str = declared(
    'float32',
    Choice(('float32', 'bfloat16')),
    'Compute type of the model; parameters, moments and loss stay float32',
  )
  accumulate: int = declared(1, Whole(1, 65_536), 'Gradient accumulation: micro-batches per batch')
  remat: str = declared(
    AUTO,
    Choice((AUTO, *REMAT)),
    'What the backward pass recomputes in each block: nothing, elementwise work, also the products before attention '
    'and GELU, or everything; auto is nothing on CPUs, and elsewhere the fastest of the others that fits',
  )
  scan: bool = declared(
    True, Flag(), 'Compile one block and loop over it, if all blocks are alike: L-DIT and the text baseline'
  )
  attention: str = declared(
    'auto',
    Choice(IMPLEMENTATIONS),
    'Attention implementation of the image encoder; auto selects the fastest supported one',
  )
  log_every: int = declared(50, _STEPS, 'Updates between log lines')
  eval_every: int | None = declared(
    None, OrNone(Whole(0, MOST_STEPS), 'an epoch'), 'Updates between evaluations; 0 evaluates at the end only'
  )
  eval_samples: int = declared(2000, _STEPS, 'Validation expressions per evaluation')
  eval_batch_size: int = declared(64, Whole(1, 65_536), 'Evaluation batch size on each host')
  final_split: str = declared('val', Text('a split of the data set'), 'Split evaluated in full at the end')
  checkpoint_every: int | None = declared(None, OrNone(_STEPS, 'an epoch'), 'Updates between checkpoints')
  keep_checkpoints: int = declared(
    2, Whole(1, 100_000), 'Recent checkpoints to keep, besides the one with the highest validation mIoU'
  )
  on_save_failure: str = declared(
    'continue',
    Choice(('continue', 'stop')),
    'What to do when a checkpoint cannot be written, for example on a full disk',
  )
  max_skipped: int = declared(
    10, Whole(1, 1_000_000), 'Consecutive updates with a non-finite loss or gradient after which the run stops'
  )

  @property
  def sample_group(self) -> int:
    """Samples of which a fixed number has no sentence: batches and micro-batches are multiples of it."""
    return self.first_prompts.without_text[1] if self.task == 'interactive' else 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResolvedOptimizerConfig(OptimizerConfig):
  """An optimiser whose warm-up is a number of updates."""

  warmup_steps: int = dataclasses.field()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResolvedRunConfig(RunConfig):
  """A run config whose lengths are in updates, see config/lengths.py; the input of training."""

  optimizer: ResolvedOptimizerConfig = dataclasses.field()
  total_steps: int = dataclasses.field()
  eval_every: int = dataclasses.field()
  checkpoint_every: int = dataclasses.field()

  def to_json(self) -> dict[str, Any]:
    """Converts all fields to plain containers, as stored in config.json."""
    return json.loads(json.dumps(dataclasses.asdict(self)))


def reads_text(task: str) -> bool:
  """Whether the samples of a task have sentences."""
  return task != 'prompts'
