"""All devices of a host share a batch, and find what one finds, bit for bit."""

from tests.devices import run_on_devices

PROGRAM = """
import sys
import jax
import numpy as np
from ditsam_jax.inference.prompts import Prompt
from ditsam_jax.inference.sam_predictor import SamPredictor
from ditsam_jax.inference.segmenter import Segmenter
from ditsam_jax.models.config import sam
from ditsam_jax.tokenization import Tokenizer
from tests.inference.test_sam_predictor import WORDS, picture
from tests.small_models import random_model, small_config
from pathlib import Path

assert len(jax.devices()) == int(sys.argv[1])
vocabulary = Path(sys.argv[2]) / f'vocab-{sys.argv[1]}.txt'
vocabulary.write_text('\\n'.join(WORDS) + '\\n')
results = []
pictures = [picture((40, 30), seed) for seed in range(5)]
for fusion in ('layer_wise', 'none'):
  model = random_model(small_config(fusion=fusion))
  segmenter = Segmenter.from_model(model, Tokenizer(vocabulary, 6), batch_size=2)
  requests = [(image, Prompt(text)) for image in pictures for text in ('the red circle', 'small square')]
  requests += [(image, Prompt(points=[[5, 6]])) for image in pictures]
  results += list(segmenter.stream(requests))
  used = {device for device in segmenter.engine._replicas}
  assert used == set(jax.devices()), used
predictor = SamPredictor(random_model(sam(small_config())))
predictor.set_image(pictures[0])
batch = predictor.predict_batch(boxes=np.tile([[3, 4, 20, 30]], (20, 1)) + np.arange(20)[:, None] / 2)
np.savez(sys.argv[3], *[np.concatenate([x.low_res_logits.ravel(), x.scores]) for x in results], batch[2])
"""


def test_devices_share_batches_and_change_no_bit(tmp_path):
  import numpy as np

  found = []
  for count in (1, 3):
    file = tmp_path / f'{count}.npz'
    run_on_devices(PROGRAM, count, count, tmp_path, file)
    with np.load(file) as arrays:
      found.append([arrays[name] for name in arrays.files])
  one, three = found
  assert len(one) == len(three) == 31
  for a, b in zip(one, three):
    np.testing.assert_array_equal(a, b)
