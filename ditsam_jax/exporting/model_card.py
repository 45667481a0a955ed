"""README.md of a model on the Hugging Face Hub: licence, data, scores and config, with the Hub's metadata on top."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from ditsam_jax.errors import UserError
from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.storage.bucket import AnyPath, BucketPath, is_bucket
from ditsam_jax.storage.description import read_config, read_description
from ditsam_jax.storage.files import read_json, write_text
from ditsam_jax.storage.paths import any_path, local_path
from ditsam_jax.storage.places import resolve
from ditsam_jax.terminal import listed, printable

FILE = 'README.md'
# The Hub's identifiers, https://huggingface.co/docs/hub/repositories-licenses
LICENSES = (
  'apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m '
  'afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 '
  'cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 '
  'cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 '
  'cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 '
  'lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl '
  'openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license '
  'fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma '
  'unknown other'
).split()
_PROTOCOLS = ('release', 'standard')
_METRICS = ('mIoU', 'oIoU', 'P@0.50', 'P@0.70', 'P@0.90', 'gIoU', 'cIoU', 'N-acc', 'T-acc')
_TYPES = {'mIoU': 'mean_iou'}  # the Hub's names of metrics; others keep theirs


class Licence(NamedTuple):
  """The licence of a model, in the Hub's fields: `name` and `link` belong to the identifier 'other'."""

  identifier: str
  name: str | None = None
  link: str | None = None


class Scores(NamedTuple):
  """The figures of one split of a data set: percentages by metric, and 95 % intervals."""

  dataset: str
  split: str
  protocol: str
  samples: int
  figures: dict[str, float]
  intervals: dict[str, list[float]]


class Card(NamedTuple):
  """What a model card says.

  Attributes:
    title: the model's name.
    layout: the export format.
    config, description: from model.json.
    parameters: number of parameters.
    licence: the model's licence.
    scores: figures of evaluations; may be empty.
  """

  title: str
  layout: str
  config: DitSamConfig
  description: dict[str, Any]
  parameters: int
  licence: Licence
  scores: list[Scores]


def licence(identifier: str | None, name: str | None, link: str | None) -> Licence:
  """Checks a licence. Raises UserError if the Hub does not know it."""
  if identifier is None:
    raise UserError('--model-card needs --license=ID, such as apache-2.0, or other with --license-name=NAME')
  if identifier not in LICENSES:
    raise UserError(
      f"--license={printable(identifier)} is not one of the Hub's identifiers, such as apache-2.0, mit or cc-by-4.0; "
      f'give one of them, or other with --license-name=NAME'
    )
  if (identifier == 'other') != (name is not None) or link and name is None:
    raise UserError('--license-name and --license-link belong to --license=other, which needs the name')
  return Licence(identifier, name, link)


def read(checkpoint: str, output: str, layout: str, licence: Licence, metrics: str | None = None) -> Card:
  """Reads what a card needs, before anything is exported.

  Args:
    checkpoint: the exported model.
    output: the folder it is exported to, which names the model.
    layout: the export format.
    licence: see `licence`.
    metrics: metrics.json of `ditsam_jax.evaluate` or `ditsam_jax.train`; None for the one in the model's workdir.

  Raises:
    UserError: huggingface_hub is missing, a file cannot be read, or `metrics` has no scores.
  """
  try:
    import huggingface_hub  # noqa: F401  # writes the metadata
  except ModuleNotFoundError as error:
    raise UserError(
      "--model-card needs huggingface_hub; install the extra 'hub': pip install 'ditsam_jax[hub]'"
    ) from error
  from ditsam_jax.storage.saved_model import stored_shapes

  description = read_description(checkpoint)
  file = Path(metrics) if metrics else _beside(checkpoint)
  scores = read_scores(file, str(description['data'].get('dataset', ''))) if file else []
  if metrics and not scores:
    raise _no_scores(metrics)
  parameters = sum(math.prod(array.shape) for array in stored_shapes(checkpoint).values())
  title = local_path(output).absolute().name
  return Card(title, layout, read_config(checkpoint), description, parameters, licence, scores)


def _beside(checkpoint: str) -> AnyPath | None:
  """metrics.json of the run that wrote a model; in a bucket, because the local copy is of the model alone."""
  folder = any_path(checkpoint) if is_bucket(checkpoint) else resolve(checkpoint)
  if isinstance(folder, BucketPath) and not (folder / 'model.json').is_file():
    folder /= 'model'
  file = folder.parent / 'metrics.json'
  return file if folder.name == 'model' and file.is_file() else None


def _no_scores(file: AnyPath | str) -> UserError:
  return UserError(
    f'{printable(file)} is not a metrics.json of ditsam_jax.evaluate or ditsam_jax.train; evaluate the model, and '
    f'give the file it writes'
  )


def read_scores(file: AnyPath, dataset: str) -> list[Scores]:
  """Reads the main figures of a metrics.json; `dataset` if it does not name one. Raises UserError if it is damaged."""
  content = read_json(file)
  found = []
  try:
    for name, figures in content.get('splits', {content.get('split'): content}).items():
      protocol = next((protocol for protocol in _PROTOCOLS if protocol in figures), None)
      if protocol is None:
        continue  # a run without evaluation
      numbers = {metric: float(figures[protocol][metric]) for metric in _METRICS if metric in figures[protocol]}
      intervals = {metric: [float(end) for end in ends] for metric, ends in figures[protocol]['intervals'].items()}
      given = figures.get('dataset', content.get('dataset', dataset))
      found.append(Scores(str(given), str(name), protocol, int(figures['samples']), numbers, intervals))
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise _no_scores(file) from error
  return found


def write(card: Card, folder: Path) -> None:
  """Writes README.md into an exported folder. Raises OSError that names the file."""
  write_text(folder / FILE, f'---\n{_metadata(card)}\n---\n\n{_text(card)}')


def _metadata(card: Card) -> str:
  from huggingface_hub import EvalResult, ModelCardData

  text = card.config.text_encoder is not None
  task = 'image-segmentation' if text else 'mask-generation'
  results = [
    EvalResult(
      task_type=task,
      dataset_type=scores.dataset,
      dataset_name=scores.dataset,
      dataset_split=scores.split,
      metric_type=_TYPES.get(metric, metric),
      metric_name=f'{metric} (percent, {scores.protocol} protocol)',
      metric_value=round(value, 4),
    )
    for scores in card.scores
    for metric, value in scores.figures.items()
  ]
  dataset = card.description['data'].get('dataset')
  data = ModelCardData(
    language='en' if text else None,
    license=card.licence.identifier,
    license_name=card.licence.name,
    license_link=card.licence.link,
    library_name='transformers' if _is_transformers(card) else 'ditsam_jax',
    pipeline_tag=task,
    tags=['segment-anything', *(['referring-expression-segmentation'] if text else []), 'jax', 'arxiv:2304.02643']
    + (['arxiv:2404.00650'] if text else []),
    datasets=[str(dataset)] if dataset else None,
    metrics=['mean_iou'] if results else None,
    model_name=card.title if results else None,
    eval_results=results or None,
  )
  return data.to_yaml()


def _is_transformers(card: Card) -> bool:
  return card.layout == 'safetensors' and card.config.text_encoder is None


def _text(card: Card) -> str:
  what = 'the object that a sentence names' if card.config.text_encoder else 'objects from points, boxes and masks'
  parts = {
    '': f'# {card.title}\n\nSegments {what}. Exported by ditsam_jax, which implements {_papers(card.config)} in JAX.',
    'Use': _use(card),
    'Model': _model(card),
    'Data': _data(card.description['data']),
    'Scores': _scores(card),
    'Limits': _limits(card),
    'Licence': _licence(card.licence),
    'Config': f'```json\n{json.dumps(card.config.to_dict(), indent=1)}\n```',
  }
  return '\n\n'.join(f'## {title}\n\n{text}' if title else text for title, text in parts.items()) + '\n'


def _papers(config: DitSamConfig) -> str:
  sam = '[Segment Anything](https://arxiv.org/abs/2304.02643)'
  dit = '[Deep Instruction Tuning for Segment Anything](https://arxiv.org/abs/2404.00650)'
  return dit if config.text_encoder else sam


def _use(card: Card) -> str:
  if _is_transformers(card):
    return (
      "```python\nfrom transformers import SamModel, SamProcessor\n\nmodel = SamModel.from_pretrained('OWNER/"
      f"{card.title}')\nprocessor = SamProcessor.from_pretrained('OWNER/{card.title}')\n```"
    )
  if card.layout not in ('flax', 'safetensors'):
    return f'`interface.json` says what the programs ({card.layout}) take and return, and how images are prepared.'
  prompt = "'the red circle'" if card.config.text_encoder else 'points=[[40, 60]]'
  return (
    "```\npip install 'ditsam_jax[hub]'\n```\n\n```python\nimport ditsam_jax\n\n"
    f"segmenter = ditsam_jax.Segmenter('hf://OWNER/{card.title}')\n"
    f"segmenter('scene.png', {prompt}).overlay().save('overlay.png')\n```"
  )


def _model(card: Card) -> str:
  config = card.config
  encoder, decoder, text = config.image_encoder, config.mask_decoder, config.text_encoder
  rows = {
    'parameters': f'{card.parameters:,}',
    'image encoder': f'width {encoder.width}, depth {encoder.depth}, heads {encoder.heads}, patch {encoder.patch_size}',
    'mask decoder': f'width {decoder.width}, depth {decoder.depth}, heads {decoder.heads}',
    'text encoder': text and f'width {text.width}, depth {text.depth}, heads {text.heads}, {text.vocab_size} words',
    'fusion': text and f'`{config.fusion}`, up to {config.max_text_tokens} tokens',
    'image size': f'{config.image_size} x {config.image_size}',
  }
  notes = {name: value for name, value in card.description['notes'].items() if isinstance(value, str | int | float)}
  rows |= {f'{name} (noted)': f'`{_cell(value)}`' for name, value in notes.items()}
  return _table(['', ''], [[name, str(value)] for name, value in rows.items() if value])


def _data(data: dict[str, Any]) -> str:
  if not data:
    return 'Not recorded.'
  rest = {name: value for name, value in data.items() if name != 'dataset'}
  name = f'`{_cell(data.get("dataset", "unnamed"))}`'
  return f'Trained on {name}.' + (f'\n\n```json\n{json.dumps(rest, indent=1)}\n```' if rest else '')


def _scores(card: Card) -> str:
  if not card.scores:
    return 'Not recorded. `python -m ditsam_jax.evaluate` computes them.'
  rows = [
    [f'`{_cell(scores.dataset)}`', f'`{_cell(scores.split)}`', f'{scores.samples:,}', metric, f'{value:.2f}']
    + ['{:.2f} to {:.2f}'.format(*scores.intervals[metric]) if metric in scores.intervals else '']
    for scores in card.scores
    for metric, value in scores.figures.items()
  ]
  table = _table(['data set', 'split', 'samples', 'metric', 'percent', '95 % interval'], rows)
  protocols = ', '.join(sorted({scores.protocol for scores in card.scores}))
  return f'{table}\n\nComputed by `python -m ditsam_jax.evaluate`, protocol: {protocols}.'


def _limits(card: Card) -> str:
  fresh, assumed = card.description['fresh'], card.description['assumed']
  lines = []
  if card.config.text_encoder is not None:
    lines.append(
      f'- Sentences are English, in lower case, of up to {card.config.max_text_tokens} tokens; one mask each.'
    )
  if fresh:
    lines.append(f'- Untrained parts: {listed(fresh, 20)}. Masks are meaningless until they are trained.')
  if assumed:
    lines.append(f'- Settings taken from a known model, because the source did not state them: {listed(assumed, 20)}.')
  lines.append('- Trained and tested only on the data above; expect errors on other images.')
  return '\n'.join(lines)


def _licence(licence: Licence) -> str:
  name = licence.name or licence.identifier
  return f'[{_cell(name)}]({licence.link})' if licence.link else _cell(name)


def _table(head: list[str], rows: list[list[str]]) -> str:
  return '\n'.join(f'| {" | ".join(row)} |' for row in [head, ['---'] * len(head), *rows])


def _cell(value: object) -> str:
  """A value from a file, safe inside a table: no line breaks, and no marks that end a cell or a code span."""
  return printable(value).replace('|', '\\|').replace('`', "'")
