"""SamPredictor refuses invalid prompts with one line."""

import numpy as np
import pytest

from ditsam_jax import SamPredictor
from ditsam_jax.errors import UserError
from tests.inference.predictor_cases import ask, picture
from tests.small_models import SAM, random_model, small_config

POINT = dict(points=[[1, 2]], labels=[1])


@pytest.fixture(scope='module')
def plain():
  """A predictor without a text encoder."""
  return SamPredictor.from_model(random_model(SAM))


@pytest.mark.parametrize(
  'prompt, message',
  [
    (dict(points=[[1, 2]]), 'points without labels'),
    (dict(labels=[1]), 'labels without points'),
    (dict(points=[1, 2], labels=[1]), r'points have shape \(2,\).*\[P, 2\]'),
    (dict(points=[[1, 2, 3]], labels=[1]), r'points have shape \(1, 3\)'),
    (dict(points=np.zeros((0, 2)), labels=[]), r'points have shape \(0, 2\).*None'),
    (dict(points=[[[1, 2]]], labels=[[1]]), r'points have shape \(1, 1, 2\)'),
    (dict(points=[[1, 2], [3]], labels=[1, 1]), 'points: not an array of numbers'),
    (dict(points=[['a', 'b']], labels=[1]), 'points: not an array of numbers'),
    (dict(points=[[1, np.nan]], labels=[1]), 'points: NaN'),
    (dict(points=[[1, np.inf]], labels=[1]), 'points: NaN or infinite'),
    (dict(points=[[1, 2]], labels=[1, 0]), r'labels have shape \(2,\): expected \(1,\)'),
    (dict(points=[[1, 2]], labels=1), r'labels have shape \(\)'),
    (dict(points=[[1, 2]], labels=[-1]), 'label -1: expected 1'),
    (dict(points=[[1, 2]], labels=[2]), 'label 2: expected 1'),
    (dict(points=[[1, 2]], labels=[0.5]), 'label 0.5: expected 1'),
    (dict(box=[1, 2, 3]), r'box has shape \(3,\).*\(x0, y0, x1, y1\)'),
    (dict(box=[[1, 2, 3, 4]] * 2), r'box has shape \(2, 4\)'),
    (dict(box=[1, 2, 3e38, 4]), r'box: a number of size 3e\+38; expected at most 1e\+08'),
    (dict(points=np.zeros((1001, 2)), labels=np.ones(1001)), '1,001 points: expected at most 1,000'),
    (dict(mask=np.full((20, 20), 1e9)), 'mask: a number of size'),
    (dict(box=[1, 2, np.nan, 4]), 'box: NaN'),
    (dict(box=[30, 2, 10, 4]), r'box \[30.0, 2.0, 10.0, 4.0\].*x0 <= x1'),
    (dict(POINT, mask=np.zeros((80, 80))), r'mask has shape \(80, 80\): expected \(20, 20\)'),
    (dict(mask=np.zeros((3, 20, 20))), r'mask has shape \(3, 20, 20\)'),
    (dict(mask=np.full((20, 20), np.nan)), 'mask: NaN'),
    (dict(POINT, text='the red circle'), "'the red circle': this model has no text encoder"),
  ],
)
def test_invalid_prompts(plain, prompt, message):
  plain.set_image(picture((9, 7)))
  with pytest.raises(UserError, match=message) as error:
    ask(plain, **prompt)
  assert '\n' not in str(error.value)


def test_predicting_without_an_image():
  with pytest.raises(UserError, match='call set_image first'):
    ask(SamPredictor.from_model(random_model(SAM)), **POINT)


def test_blank_sentences_and_missing_tokenizers(tokenizer):
  model = random_model(small_config())
  predictor = SamPredictor.from_model(model, tokenizer)
  predictor.set_image(picture((8, 8)))
  for text in ('', ' \n', 3):
    with pytest.raises(UserError, match='expected words'):
      ask(predictor, text=text)
  wordless = SamPredictor.from_model(model)
  wordless.set_image(picture((8, 8)))
  with pytest.raises(UserError, match='no tokenizer'):
    wordless.predict(text='the red circle')
