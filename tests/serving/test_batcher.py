"""Prompts of many clients share batches in order; overload, cancellation, errors and shutdown are handled."""

import threading
import time

import numpy as np
import pytest

from ditsam_jax.inference.framing import frame
from ditsam_jax.inference.prompts import Prompt
from ditsam_jax.serving import programs
from ditsam_jax.serving.batcher import Batcher
from ditsam_jax.serving.limits import Limits
from ditsam_jax.serving.metrics import Metrics
from ditsam_jax.serving.refusals import Refused
from tests.fuzz.seeds import picture
from tests.serving.running import Held


@pytest.fixture
def held(segmenter):
  return Held(segmenter)


@pytest.fixture
def batcher(held):
  found = Batcher(held, Limits(queue=8, per_client=5), Metrics())
  yield found
  held.go.set()
  found.close()


@pytest.fixture(scope='module')
def image(segmenter):
  return frame(picture(), segmenter.config)


def ask(batcher, image, prompts, client='me'):
  checked = [batcher._segmenter.prompt(prompt) for prompt in prompts]
  return batcher.submit(client, image, checked, lambda prediction: prediction)


def texts(*words):
  return [Prompt(f'the {word} circle') for word in words]


@pytest.mark.slow
def test_prompts_of_one_kind_share_a_batch_with_the_same_results_as_alone(held, batcher, image, segmenter):
  batcher.pays_from = {segmenter.row(image, Prompt('a')).kind: 2}
  first = ask(batcher, image, texts('red'), 'a')
  time.sleep(0.05)  # it starts before the others arrive
  others = ask(batcher, image, [*texts('blue'), Prompt(points=[[3, 4]])], 'b') + ask(
    batcher, image, texts('green', 'large'), 'c'
  )
  held.go.set()
  found = [future.result(60) for future in first + others]
  assert held.batches == [
    (['the red circle'], 1),
    (['the blue circle', 'the green circle', 'the large circle'], 4),
    ([1], 1),
  ]
  alone = [segmenter(picture(), asked) for asked in (*texts('red', 'blue'), Prompt(points=[[3, 4]]))]
  for prediction, wanted in zip(found, alone):
    np.testing.assert_allclose(prediction.low_res_logits, wanted.low_res_logits, rtol=1e-4, atol=1e-4)
  assert np.array_equal(found[0].logits, alone[0].logits)  # bit-identical when run alone


def test_prompts_run_one_by_one_if_a_batch_is_slower(held, batcher, image, segmenter):
  batcher.pays_from = {segmenter.row(image, Prompt('a')).kind: 3}
  held.go.set()
  for count in (2, 3):
    for future in ask(batcher, image, texts('red', 'blue', 'green')[:count]):
      future.result(60)
  assert [(len(names), at_once) for names, at_once in held.batches] == [(2, 1), (3, 4)]


def test_a_full_queue_and_a_greedy_client_are_refused(held, batcher, image):
  batcher.pays_from = {}
  ask(batcher, image, texts('red'), 'first')
  time.sleep(0.05)
  ask(batcher, image, texts(*'abcde'), 'greedy')
  for client, count, status in (('greedy', 1, 429), ('other', 4, 503)):
    with pytest.raises(Refused) as refused:
      ask(batcher, image, texts(*'abcdefgh'[:count]), client)
    assert refused.value.status == status and refused.value.retry_after >= 1
  last = ask(batcher, image, texts('red'), 'other')
  held.go.set()
  assert last[0].result(60).text == 'the red circle'
  while batcher._clients:  # updated shortly after the answers
    time.sleep(0.001)
  ask(batcher, image, texts(*'abcde'), 'greedy')[-1].result(60)


def test_a_cancelled_prompt_is_not_computed(held, batcher, image):
  futures = ask(batcher, image, texts('red'))
  time.sleep(0.05)
  futures += ask(batcher, image, texts('blue', 'green'))
  assert futures[1].cancel()
  held.go.set()
  futures[2].result(60)
  assert [name for names, _ in held.batches for name in names] == ['the red circle', 'the green circle']


def with_first_cancelled(held, image, wait):
  """A batcher with a waiting prompt, whose other one, of another kind, is cancelled while it waits for more like it."""
  batcher = Batcher(held, Limits(batch_wait=wait), Metrics())
  held.go.set()
  (first,) = ask(batcher, image, texts('red'))
  (other,) = ask(batcher, image, [Prompt(points=[[3, 4]])])
  time.sleep(0.05)  # the batcher waits for more prompts of the first kind
  assert first.cancel()
  return batcher, other


def test_prompts_of_other_kinds_start_after_the_first_is_cancelled_while_it_waits(held, image):
  batcher, other = with_first_cancelled(held, image, wait=0.3)
  try:
    assert other.result(10) and held.batches == [([1], 1)]
  finally:
    batcher.close()


def test_closing_finishes_prompts_of_other_kinds_than_a_cancelled_one(held, image):
  batcher, other = with_first_cancelled(held, image, wait=60)
  batcher.close()
  assert other.result(0)


def test_an_error_affects_only_its_batch(held, batcher, image):
  held.go.set()
  held.fails = True
  for _ in range(4):  # more than may be under way: failed batches free their slots
    (future,) = ask(batcher, image, texts('red'))
    with pytest.raises(RuntimeError, match='the device is gone'):
      future.result(60)
  held.fails = False
  assert ask(batcher, image, texts('red'))[0].result(60)
  bad = batcher.submit('me', image, [batcher._segmenter.prompt('red')], lambda prediction: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    bad[0].result(60)


def test_closing_finishes_waiting_prompts_and_refuses_new_ones(held, image):
  batcher = Batcher(held, Limits(), Metrics())
  futures = ask(batcher, image, texts('red', 'blue'))
  threading.Timer(0.05, held.go.set).start()
  batcher.close()
  assert all(future.result(0) for future in futures)
  with pytest.raises(Refused) as refused:
    ask(batcher, image, texts('red'))
  assert refused.value.status == 503


def test_an_idle_device_prepares_images(segmenter, batcher):
  prepared = frame(picture(), segmenter.config)
  batcher.prepare(prepared)
  deadline = time.monotonic() + 60
  while prepared.square.known(None, segmenter.engine.devices[0]) is None:
    assert time.monotonic() < deadline
    time.sleep(0.01)


def test_every_kind_of_prompt_is_compiled_before_the_service_is_ready(segmenter, image, monkeypatch):
  ran = []
  monkeypatch.setattr(programs, '_run', lambda segmenter, image, prompt, size: ran.append((kind(prompt), size)))
  kind = lambda prompt: segmenter.row(image, segmenter.prompt(prompt)).kind
  told = []
  pays = programs.compile_all(segmenter, 30, lambda *numbers: told.append(numbers), lambda: False)
  mask = np.zeros((16, 16))
  for prompt in (
    Prompt('a'), Prompt(points=[[1, 2]]), Prompt('a', [[1, 2]] * 7, multimask=True),
    Prompt('a', [[1, 2]] * 30, box=[0, 0, 1, 1]), Prompt(points=[[1, 2]] * 30, mask=mask),
    Prompt(mask=mask, multimask=True), Prompt('a', mask=mask), Prompt(points=[[1, 2]] * 12),
  ):  # fmt: skip
    assert (kind(prompt), 1) in ran
  batched = {kind for kind, size in ran if size == 4}
  assert (
    batched == set(pays) and {kind(Prompt('a')), kind(Prompt(points=[[1, 2]])), kind(Prompt('a', [[1, 2]]))} <= batched
  )
  assert sorted(told) == [(number, told[0][1]) for number in range(1, told[0][1] + 1)]
  with pytest.raises(programs.Stopped):
    programs.compile_all(segmenter, 30, lambda *_: None, lambda: True)
