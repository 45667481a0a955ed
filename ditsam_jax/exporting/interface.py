"""interface.json: inputs and outputs of an exported model's programs, with pre- and post-processing."""

from pathlib import Path
from typing import Any

from ditsam_jax.exporting.folders import fields
from ditsam_jax.exporting.source import Source
from ditsam_jax.geometry.letterbox import logit

FILE = 'interface.json'
VOCABULARY = 'vocab.txt'
VERSION = 1
PROGRAMS = 'text_encoder', 'image_encoder', 'decoder'

_LABELS = '-1 padding, 0 off the object, 1 on the object, 2 and 3 the top left and bottom right corner of a box'
MEANINGS = {
  'token_ids': 'ids of the word pieces: [CLS] words [SEP], then 0; see "text"',
  'token_mask': '1 for tokens, 0 for padding',
  'text_features': 'output of the text encoder; zero tokens for prompts without a sentence',
  'images': 'normalised RGB images in the square, see "image"',
  'image_embeddings': 'output of the image encoder',
  'point_coords': '(x, y) in pixels of the square, see "image"; points without a box end with one more point (0, 0) '
  'labelled -1, and a box is its two corners; zero points for a sentence alone',
  'point_labels': _LABELS,
  'mask_input': 'low_res_masks of an earlier prediction; zeros if there is none',
  'has_mask_input': '1 to use mask_input, 0 to ignore it',
  'points': '(x, y) in pixels of the square, see "image"; points without a box end with one more point (0, 0) labelled '
  '-1, and a box is its two corners; for a sentence alone, one point (0, 0) labelled -2',
  'labels': f'{_LABELS}; -2 no point at all, to fill up a batch',
  'mask': 'low_res_masks of an earlier prediction; zeros if there is none',
  'has_mask': 'whether to use mask',
  'square_masks': 'logits at the resolution of the square: cut off the padding, resize to the image, and pixels above '
  '"mask_logit" belong to the object; mask 0 is the single mask, 1 to 3 are for ambiguous prompts',
  'orig_im_size': 'height and width of the image in pixels',
  'masks': 'logits at the size of the image; pixels above "mask_logit" belong to the object',
  'iou_predictions': 'predicted IoU of each mask',
  'low_res_masks': 'logits of the square, padding included, at a quarter of its resolution',
}


def interface(source: Source, kind: str, programs: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
  """Describes an exported model as plain containers.

  Args:
    source: the model.
    kind: the export format.
    programs: 'file', 'inputs' and 'outputs' of every program, see `array`.
    **more: further entries.
  """
  config = source.config
  plain = config.text_encoder is None
  text = None
  if config.text_encoder is not None:
    text = {
      'tokenizer': 'BERT WordPiece, lower case, accents stripped; truncated, so that [SEP] always fits',
      'vocabulary': VOCABULARY,
      'words': len(source.pieces or ()),
      'tokens': config.max_text_tokens,
      'enters_the_image_encoder': config.encodes_text_with_image,
    }
  return {
    'format': kind,
    'version': VERSION,
    'fusion': config.fusion,
    'text': text,
    'image': {
      'size': config.image_size,
      'resize': 'long side to size; sides are rounded to '
      + ('the nearest integer, 0.5 up' if plain else 'the nearest integer, 0.5 to even'),
      'interpolation': 'bilinear, antialiased (Pillow)' if plain else 'bilinear, not antialiased (OpenCV)',
      'place': 'top_left' if plain else 'centre',
      'centre': None if plain else 'top = round((size - height) / 2 - 0.1), 0.5 to even; left likewise',
      'scale': 255,
      'mean': list(config.pixel_mean),
      'std': list(config.pixel_std),
      'padding': 'zeros, after normalising (pixel / scale - mean) / std',
    },
    'mask_logit': logit(config.mask_threshold),
    'programs': programs,
    'untrained': list(source.description['fresh']),
  } | more


def is_export(kind: str, folder: Path) -> bool:
  """Whether a folder is an export in the format `kind`."""
  described = fields(folder / FILE)
  return described.get('format') == kind and 'programs' in described


def array(name: str, dtype: str, shape: list[int | str]) -> dict[str, Any]:
  """Describes an input or output; axes of any size are named."""
  return {'name': name, 'dtype': dtype, 'shape': shape, 'meaning': MEANINGS[name]}
