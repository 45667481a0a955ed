"""All devices of a host share a batch; results are bit-identical to those of one device."""

import numpy as np
import pytest

from tests.devices import run_on_devices
from tests.inference.predictor_cases import WORDS

PROGRAM = """
import dataclasses, sys
import jax
import numpy as np
from ditsam_jax import Prompt, SamAutomaticMaskGenerator, SamPredictor, Segmenter, Tokenizer
from tests.inference.predictor_cases import picture
from tests.small_models import random_model, small_config

small = small_config()
encoder = dataclasses.replace(small.image_encoder, depth=1, global_blocks=(0,))
decoder = dataclasses.replace(small.mask_decoder, depth=1)
models = [random_model(small_config(fusion=f, image_encoder=encoder, mask_decoder=decoder)) for f in ('layer_wise', 'none')]
pictures = [picture((40, 30), seed) for seed in range(7)]
asked = [[Prompt('the red circle')], [Prompt(points=[[5, 6]]), Prompt(points=[[20, 9]])]]
results = []
for model, prompts in zip(models, asked):
  segmenter = Segmenter.from_model(model, Tokenizer(sys.argv[2], 6), batch_size=2)
  results += segmenter.stream([(image, prompt) for image in pictures for prompt in prompts])
  assert set(segmenter.engine._replicas) == set(jax.devices()) and len(jax.devices()) == int(sys.argv[1])
predictor = SamPredictor(models[1])
predictor.set_image(pictures[0])
batch = predictor.predict_batch(boxes=np.tile([[3, 4, 20, 30]], (20, 1)) + np.arange(20)[:, None] / 2)
settings = dict(pred_iou_thresh=0, stability_score_thresh=0, box_nms_thresh=1, crop_nms_thresh=1, crop_n_layers=1)
everything = SamAutomaticMaskGenerator(models[1], 5, **settings).generate(pictures[0])
masks = np.stack([record['segmentation'] for record in everything])
scores = np.array([record['predicted_iou'] for record in everything])
arrays = [np.append(result.low_res_logits, result.scores) for result in results]
np.savez(sys.argv[3], *arrays, batch[2], masks, scores)
"""  # noqa: E501


@pytest.mark.multiprocess
def test_three_devices_are_bit_identical_to_one(tmp_path):
  (tmp_path / 'vocab.txt').write_text('\n'.join(WORDS) + '\n')
  found = []
  for count in (1, 3):
    run_on_devices(PROGRAM, count, count, tmp_path / 'vocab.txt', tmp_path / f'{count}.npz')
    with np.load(tmp_path / f'{count}.npz') as arrays:
      found.append([arrays[name] for name in arrays.files])
  one, three = found
  assert len(one) == len(three) == 7 + 14 + 1 + 2
  for a, b in zip(one, three):
    np.testing.assert_array_equal(a, b)
