"""Text-prompted Segment Anything by deep instruction tuning (arXiv 2404.00650), in JAX and Flax NNX.

import ditsam_jax
segmenter = ditsam_jax.Segmenter('shapes')
result = segmenter('scene.png', 'the small red circle')  # .mask, .score, .box, .rle(), .overlay()

config = ditsam_jax.presets.vit_b(fusion='e2e')
model = ditsam_jax.DitSam(config, rngs=nnx.Rngs(0))
"""

import importlib
import os
import sys

if sys.argv[:1] == ['-m'] and sys.orig_argv[-len(sys.argv)].removeprefix('-m').startswith('ditsam_jax.'):
  # python -m ditsam_jax.COMMAND imports this first, so interrupting the command's imports gives one line.
  from ditsam_jax import command_line

  command_line.begin()
elif 'multiprocessing.spawn' in sys.modules and os.path.dirname(sys.argv[0]) == os.path.dirname(__file__):
  # A worker process of a command.
  from ditsam_jax import interruption

  interruption.leave_to_parent()

# Imported lazily, so `import ditsam_jax` is fast.
_WHERE = {
  'DitSam': 'ditsam_jax.models.ditsam',
  'DitSamConfig': 'ditsam_jax.models.config',
  'ImageEncoderConfig': 'ditsam_jax.models.config',
  'MaskDecoderConfig': 'ditsam_jax.models.config',
  'Output': 'ditsam_jax.models.ditsam',
  'Prediction': 'ditsam_jax.inference.results',
  'Prompt': 'ditsam_jax.inference.prompts',
  'SamAutomaticMaskGenerator': 'ditsam_jax.inference.mask_generator',
  'SamPredictor': 'ditsam_jax.inference.sam_predictor',
  'Segmenter': 'ditsam_jax.inference.segmenter',
  'TextEncoderConfig': 'ditsam_jax.models.config',
  'Tokenizer': 'ditsam_jax.tokenization',
  'UserError': 'ditsam_jax.errors',
  'attention_maps': 'ditsam_jax.inference.attention_maps',
  'load': 'ditsam_jax.storage.saved_model',
  'save': 'ditsam_jax.storage.saved_model',
}

__all__ = [*_WHERE, 'presets']


def __getattr__(name: str):
  if name == 'presets':
    return importlib.import_module('ditsam_jax.models.config')
  if name not in _WHERE:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
  return sorted(__all__)
