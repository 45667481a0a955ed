"""A stand-in for the model, input files and calls that the command must refuse."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ditsam_jax import predict
from ditsam_jax.errors import UserError
from ditsam_jax.inference.results import Prediction


class BrightSegmenter:
  """Segments bright pixels; does not know the word 'cat' and reads at most four words."""

  made: list['BrightSegmenter'] = []
  interrupt_after = None

  def __init__(self, checkpoint, *, batch_size, dtype):
    self.batch_size, self.dtype, self.asked = batch_size, dtype, []
    self.made.append(self)

  def stream(self, requests):
    requests = iter(requests)
    while batch := list(itertools.islice(requests, self.batch_size)):
      for image, prompt in batch:
        if len(self.asked) == self.interrupt_after:
          raise KeyboardInterrupt
        self.asked.append(prompt)
        masks = np.stack([image[..., 0] > level for level in ((127, 200, 250) if prompt.multimask else (127,))])
        words = (prompt.text or '').split()
        scores = np.array([0.5, 0.876, 0.7] if prompt.multimask else [0.876], np.float32)
        yield Prediction(
          prompt, image, masks, scores, np.zeros(masks.shape, np.float32), masks, ' '.join(words[4:]),
          tuple(word for word in words if word == 'cat'),
        )  # fmt: skip


def saved(path, pixels=None):
  path.parent.mkdir(exist_ok=True, parents=True)
  Image.fromarray(np.zeros((4, 4, 3), np.uint8) if pixels is None else pixels).save(path)
  return str(path)


def rows_of(path):
  return [json.loads(line) for line in Path(path).read_text().splitlines()]


def prompt_file(path, *rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return f'--prompts={path}'


def refused(*arguments):
  with pytest.raises(UserError) as caught:
    predict.main(list(map(str, arguments)))
  assert not BrightSegmenter.made, 'the model was loaded'
  (line,) = str(caught.value).splitlines()
  return line
