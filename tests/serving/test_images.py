"""The image store: bounded in bytes and age, private to owners, never frees images in use."""

import numpy as np
import pytest

from ditsam_jax.inference.framing import frame
from ditsam_jax.serving.images import ImageStore, bytes_of
from ditsam_jax.serving.refusals import Refused
from tests.fuzz.seeds import text_config

CONFIG = text_config()


def framed():
  return frame(np.zeros((40, 50, 3), np.uint8), CONFIG)


ONE = bytes_of(framed())


@pytest.fixture
def clock():
  return [0.0]


@pytest.fixture
def store(clock):
  return ImageStore(3 * ONE, 60, lambda: clock[0])


def held_by(store, images):
  """Returns which images are still in the store."""
  found = []
  for image in images:
    try:
      found.append(store.get(image.owner, image.id) is image)
    except Refused as error:
      assert error.status == 404
      found.append(False)
  return found


def test_the_bytes_of_an_image_include_pixels_square_and_embeddings():
  embedding = CONFIG.grid**2 * CONFIG.mask_decoder.width * 4
  assert ONE == 40 * 50 * 3 + 64 * 64 * 3 * 4 + 9 * embedding


def test_the_least_recently_used_image_is_evicted(store):
  a, b, c = (store.add('me', framed()) for _ in range(3))
  store.get('me', a.id)
  d = store.add('me', framed())
  assert held_by(store, [a, b, c, d]) == [True, False, True, True] and store.bytes == 3 * ONE and store.evicted == 1


def test_unused_images_expire(store, clock):
  a = store.add('me', framed())
  clock[0] = 50
  b = store.add('me', framed())
  clock[0] = 61
  store.expire()
  assert held_by(store, [a, b]) == [False, True] and store.bytes == ONE


def test_an_image_in_use_stays_and_counts(store):
  images = [store.add('me', framed()) for _ in range(3)]
  with store.hold(images[0]), store.hold(images[1]), store.hold(images[2]):
    with pytest.raises(Refused) as refused:
      store.add('me', framed())
    assert refused.value.status == 503 and refused.value.retry_after
    store.drop(images[0])
    assert len(store) == 2 and store.bytes == 3 * ONE
  assert store.bytes == 2 * ONE
  store.add('me', framed())


def test_an_image_larger_than_the_store_is_refused():
  with pytest.raises(Refused) as refused:
    ImageStore(ONE - 1, 60).add('me', framed())
  assert refused.value.status == 413


def test_only_its_owner_finds_an_image(store):
  image = store.add('me', framed())
  for owner in ('', 'you', 'me ', 'mé'):
    with pytest.raises(Refused):
      store.get(owner, image.id)
