"""Which picture and which request the page keeps: failures, cancelled prompts, pictures that follow one another."""

import asyncio

import numpy as np
import pytest

from ditsam_jax.geometry.masks import encode_rle
from ditsam_jax.serving.limits import Limits
from tests.browsing import HOLD, RELEASE
from tests.fuzz.seeds import picture
from tests.serving.pages import ask, choose, downloaded, give, opened, playwright, said, spot
from tests.serving.running import png, running

pytestmark = pytest.mark.slow


def test_a_new_click_cancels_the_current_request(page):
  choose(page)
  held = []
  page.route('**/prompts', lambda route: held.append(route) if not held else route.continue_())
  failed = []
  page.on('requestfailed', lambda request: failed.append(request.url))
  page.mouse.click(*spot(page, 20, 10))
  with page.expect_response('**/prompts') as answer:
    page.mouse.click(*spot(page, 30, 20))
  assert len(answer.value.request.post_data_json['points']) == 2
  said(page, 'predicted IoU')
  assert len(failed) == 1


def test_a_download_leaves_the_current_request_alone(page):
  choose(page)
  ask(page)
  held = []
  page.route('**/prompts', lambda route: held.append(route))  # downloads add ?candidate
  with page.expect_request('**/prompts'):
    page.mouse.click(*spot(page, 20, 10))
  downloaded(page, '#save-mask')
  playwright.expect(page.locator('#busy')).to_be_visible()
  said(page, 'Point on the object')
  held.pop().continue_()
  said(page, 'predicted IoU')


def test_three_candidates_without_a_prompt_leave_everything_alone(page):
  choose(page)
  mask = np.ones((40, 56), bool)
  found = {'masks': [{'score': 0.5, 'area': 2240, 'rle': encode_rle(mask)}], 'width': 56, 'height': 40}
  held = []
  page.route('**/everything', lambda route: held.append(route))
  with page.expect_request('**/everything'):
    page.click('#everything')
  page.check('#multimask')
  held.pop().fulfill(json=found)
  said(page, '1 object.')
  page.uncheck('#multimask')
  playwright.expect(page.locator('#result')).to_be_visible()


def test_pictures_can_be_pasted_and_dropped(page):
  make = """([bytes, kind]) => {
    const data = new DataTransfer();
    data.items.add(new File([new Uint8Array(bytes)], 'given.png', {type: 'image/png'}));
    const name = kind === 'paste' ? 'clipboardData' : 'dataTransfer';
    const event = new (kind === 'paste' ? ClipboardEvent : DragEvent)(kind, {bubbles: true, cancelable: true, [name]: data});
    document.body.dispatchEvent(event);
  }"""  # noqa: E501
  for number, kind in enumerate(('paste', 'drop')):
    page.evaluate(make, [list(png(picture(40 + number, 56))), kind])
    playwright.expect(page.locator('#name')).to_have_text(f'given.png, 56 × {40 + number}')
  give(page, 'notes.png', b'no picture')
  said(page, 'cannot show it as a picture')


def test_the_picture_chosen_last_stays(page):
  name, held = page.locator('#name'), []
  page.route('**/samples/shapes-1.jpg', lambda route: held.append(route))
  with page.expect_request('**/samples/shapes-1.jpg'):
    page.click('[data-sample*="shapes-1"]')
  choose(page, name='after a sample.png')
  with page.expect_response('**/samples/shapes-1.jpg'):
    held.pop().continue_()
  ask(page)
  playwright.expect(name).to_contain_text('after a sample.png')

  for last in ('after a file.png', 'after no picture.png'):
    page.evaluate(HOLD)
    give(page, 'slow.png', b'no picture' if 'no picture' in last else None)
    choose(page, name=last)
    page.evaluate(RELEASE)
    playwright.expect(name).to_contain_text(last)
    said(page, 'Type what to segment')

  page.evaluate(HOLD)
  give(page, 'slow.png')
  page.click('#another')
  page.evaluate(RELEASE)
  playwright.expect(page.locator('#work')).to_be_hidden()


def test_a_picture_given_while_another_is_uploaded_replaces_it(page, live, monkeypatch):
  framed, uploads = live.service._framed, []

  async def slow_at_first(*arguments):
    uploads.append(arguments)
    await asyncio.sleep(1 if len(uploads) == 1 else 0)
    return await framed(*arguments)

  monkeypatch.setattr(live.service, '_framed', slow_at_first)  # the session has no cookie until this has ended
  before = len(live.service.store)
  with page.expect_request_finished(lambda request: request.method == 'DELETE'):
    for number in range(2):
      give(page, f'{number}.png', png(picture(40 + number, 56)))
      playwright.expect(page.locator('#name')).to_have_text(f'{number}.png, 56 × {40 + number}')
  ask(page)
  assert len(uploads) == 2 and len(live.service.store) == before + 1


def test_an_expired_picture_is_uploaded_again(page, live):
  choose(page)
  ask(page)
  page.expected = '404'  # Chromium logs each, sometimes after the new answer
  store = live.service.store
  for image in list(store._images.values()):
    store.drop(image)
  ask(page, 'the blue square')


def test_a_picture_whose_upload_failed_is_uploaded_again(page):
  page.expected = 'Failed to load resource'
  page.route('**/api/images', lambda route: route.abort(), times=1)
  give(page)
  said(page, 'the service cannot be reached')
  ask(page)


def test_a_picture_waits_until_the_service_is_ready(browser, segmenter):
  with running(segmenter, Limits(seconds=300)) as service:
    state = service.service.state
    state.ready, state.compiled, state.programs = False, 3, 10
    page = opened(browser, service.port)
    said(page, 'compiling programs: 3 of 10 done')
    give(page, 'notes.png', b'no picture')
    said(page, 'cannot show it as a picture')
    state.compiled = 4
    for _ in range(2):
      page.wait_for_event('response', lambda response: response.url.endswith('/readyz'))
    said(page, 'cannot show it as a picture')
    give(page)
    said(page, 'compiling programs: 4 of 10 done')
    state.ready = True
    said(page, 'Ready.')
    ask(page)
    assert sum(url.endswith('/api/images') for url in page.asked) == 1  # none was refused
    page.context.close()
    assert all('503' in each for each in page.wrong)
