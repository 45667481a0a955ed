"""What a run writes of its evaluations: the best model, samples, curves, and the results at the end."""

from typing import Any

from PIL import Image

from ditsam_jax.config.run import RunConfig
from ditsam_jax.errors import UserError
from ditsam_jax.evaluation.pictures import Gallery
from ditsam_jax.evaluation.results import Results
from ditsam_jax.models.ditsam import DitSam
from ditsam_jax.parallel import distributed
from ditsam_jax.storage import saved_model
from ditsam_jax.storage.bucket import AnyPath
from ditsam_jax.storage.files import write_json
from ditsam_jax.storage.image_files import write_png
from ditsam_jax.training.checkpoint import Progress


def save_samples(workdir: AnyPath, step: int, results: Results, gallery: Gallery, config: RunConfig) -> Image.Image:
  """Draws the same validation samples at every evaluation and writes the picture; only warns if that fails."""
  picture = gallery.fixed_panel(f'{config.data.dataset} val, step {step}: mIoU {results.miou:.1f}')
  if distributed.is_first():
    try:
      write_png(workdir / 'validation' / f'step_{step:06d}.png', picture)
    except UserError as error:
      distributed.tell(f'warning: {error}; training continues')
  return picture


def save_best(workdir: AnyPath, config: RunConfig, model: DitSam, progress: Progress, describe: dict[str, Any]) -> None:
  """Saves the model with the highest validation score; handles failures by `config.on_save_failure`."""
  if not distributed.is_first():
    return
  try:
    notes = {'steps': progress.best_step, 'val_mIoU': progress.best_score, 'task': config.task}
    saved_model.save(workdir / 'best', model, **describe, notes=notes)
  except UserError as error:
    if config.on_save_failure == 'stop':
      raise
    distributed.tell(f'warning: {error}; training continues')


def write_results(
  workdir: AnyPath,
  config: RunConfig,
  summary: dict[str, Any],
  results: Results | None,
  gallery: Gallery | None,
  unsaved: UserError | None,
) -> None:
  """Prints and writes metrics and predictions. Raises UserError after the metrics if the model is `unsaved`."""
  if results is not None:
    print(results.table())
  write_json(workdir / 'metrics.json', summary)
  written = [workdir / 'metrics.json', workdir / 'model']
  if unsaved:
    raise UserError(f'{unsaved}; {written[0]} is written; rerun the command to write the model') from unsaved
  if results is not None and gallery is not None:
    try:  # last, so a failure does not prevent writing the metrics
      write_png(workdir / 'predictions.png', gallery.panel(_headline(config, results)))
      written.append(workdir / 'predictions.png')
    except UserError as error:
      distributed.tell(f'warning: {error}')
  print('written:', ', '.join(map(str, written)))


def curves(results: Results) -> dict[str, float]:
  """The curves of an evaluation in TensorBoard: mIoU, in total and by kind of expression."""
  return {'mIoU': results.miou, **{f'mIoU_{kind}': results.metrics(kind=kind)['mIoU'] for kind in results.kinds}}


def _headline(config: RunConfig, results: Results) -> str:
  return f'{config.data.dataset} {config.final_split}, {config.model.fusion}: mIoU {results.miou:.1f}'
