"""Runs an ONNX export in ONNX Runtime, and compares it with JAX."""

from pathlib import Path

import numpy as np
import onnxruntime

from ditsam_jax.exporting.reference import Case, Stages, difference
from ditsam_jax.models.config import DitSamConfig

_TIE = 1e-4  # scores closer than this may be ordered differently


class Session:
  """Runs the programs of an export on the CPU, for prompts on one image."""

  def __init__(self, folder: Path, config: DitSamConfig):
    """Loads the programs of `folder`."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')  # waits without using a core
    self.config = config
    self._programs = {
      file.stem: onnxruntime.InferenceSession(file, options, providers=['CPUExecutionProvider'])
      for file in sorted(folder.glob('*.onnx'))
    }

  def read(self, tokens: tuple[np.ndarray, np.ndarray] | None) -> np.ndarray:
    """Token ids and mask [T] -> text features [1, T, Ct]; [1, 0, Ct] without a sentence."""
    if tokens is None:
      assert self.config.text_encoder is not None
      return np.zeros((1, 0, self.config.text_encoder.width), np.float32)
    ids, mask = (rows[None].astype(np.int64) for rows in tokens)
    return self.run('text_encoder', token_ids=ids, token_mask=mask)[0]

  def encode(self, pixels: np.ndarray, text: np.ndarray | None) -> np.ndarray:
    """A square [S, S, 3] -> its embedding [1, C, h, w]."""
    enters = {'text_features': text} if self.config.encodes_text_with_image else {}
    return self.run('image_encoder', images=pixels.transpose(2, 0, 1)[None], **enters)[0]

  def decode(self, embedding: np.ndarray, case: Case, text: np.ndarray | None) -> list[np.ndarray]:
    """The masks, their predicted IoU and the low-resolution masks of a case, each with an axis of 1 prompt."""
    side = 4 * self.config.grid
    mask = np.zeros((side, side), np.float32) if case.mask is None else case.mask
    return self.run(
      'decoder',
      image_embeddings=embedding,
      point_coords=case.points[None],
      point_labels=case.labels[None].astype(np.float32),
      mask_input=mask[None, None],
      has_mask_input=np.array([case.mask is not None], np.float32),
      orig_im_size=np.array(case.framed.size, np.float32),
      **({} if text is None else {'text_features': text}),
    )

  def __call__(self, case: Case) -> dict[str, np.ndarray]:
    """Runs all programs; returns every output by name, without the axis of prompts."""
    text = None if self.config.text_encoder is None else self.read(case.tokens)
    embedding = self.encode(case.framed.square.pixels, text)
    masks, iou, low_res = self.decode(embedding, case, text)
    found = {'image_embeddings': embedding, 'iou_predictions': iou, 'low_res_masks': low_res, 'masks': masks}
    if case.tokens is not None and text is not None:
      found = {'text_features': text} | found
    return {name: array[0] for name, array in found.items()}

  def run(self, program: str, **inputs) -> list[np.ndarray]:
    """Runs one program by its file name without .onnx; returns its outputs in order."""
    return [np.asarray(output) for output in self._programs[program].run(None, inputs)]


def differences(found: dict[str, np.ndarray], stages: Stages, case: Case) -> dict[str, float]:
  """The largest difference of each output from JAX, relative to JAX's largest value."""
  ours = {'image_embeddings': stages.image_embedding.transpose(2, 0, 1)}
  if 'text_features' in found and stages.text_features is not None:
    ours['text_features'] = stages.text_features
  by_output = {name: difference(ours[name], found[name]) for name in ours}
  choices = []
  for chosen in selections(stages.iou, case, len(found['iou_predictions'])):
    masks = {'low_res_masks': stages.low_res_masks, 'iou_predictions': stages.iou, 'masks': stages.masks}
    choices.append({name: difference(array[chosen], found[name]) for name, array in masks.items()})
  return by_output | min(choices, key=lambda choice: max(choice.values()))


def selections(iou: np.ndarray, case: Case, returned: int) -> list[list[int]]:
  """Which of the four masks the decoder may return: more than one list only if their scores tie."""
  if returned == len(iou):
    return [list(range(returned))]
  if case.framed.config.text_encoder is not None or len(case.points) >= 3:
    return [[0]]
  return [[i] for i in range(1, len(iou)) if not iou[i] < iou[1:].max() - _TIE]  # all if scores are NaN
