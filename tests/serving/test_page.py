"""The page in a real browser, at desktop and phone size: every control, by mouse, touch and keyboard."""

import json

import numpy as np
import pytest
from PIL import Image

from ditsam_jax.geometry.masks import decode_rle
from ditsam_jax.inference.mask_generator import SamAutomaticMaskGenerator
from tests.browsing import SIZES
from tests.fuzz.seeds import picture
from tests.serving.pages import TEXT, accessible, ask, choose, downloaded, drawn, opened, playwright, said, spot
from tests.serving.running import running

pytestmark = pytest.mark.slow


def test_every_control(page, segmenter, size):
  choose(page)
  assert page.locator('#name').inner_text() == 'scene.png, 56 × 40'
  ask(page)
  found = segmenter(picture(), TEXT)
  assert page.locator('#score').inner_text() == f'{found.score:.3f}'
  assert page.locator('#area').inner_text() == f'{100 * found.area / 2240:.1f} %'

  path, name = downloaded(page, '#save-mask')
  assert name == 'scene.mask.png' and np.array_equal(np.asarray(Image.open(path)) == 255, found.mask)
  path, name = downloaded(page, '#save-json')
  content = json.loads(path.read_text())
  assert name == 'scene.json' and np.array_equal(decode_rle(content['masks'][0]['rle']), found.mask)
  assert (content['image'], content['prompt']) == ('scene.png', {'text': TEXT})
  path, name = downloaded(page, '#save-overlay')
  overlay = np.asarray(Image.open(path).convert('RGB')).astype(int)
  assert name == 'scene.overlay.png' and overlay.shape == (40, 56, 3)
  changed = np.abs(overlay - picture()).sum(2) > 30
  assert changed[found.mask].mean() > 0.5  # tinted; outside, the picture is darkened

  with page.expect_response('**/prompts') as answer:
    if size == 'phone':
      page.touchscreen.tap(*spot(page, 20, 10))
    else:
      page.mouse.click(*spot(page, 20, 10))
  sent = answer.value.request.post_data_json
  assert sent['text'] == TEXT and sent['labels'] == [1] and np.allclose(sent['points'], [[20.5, 10.5]], atol=0.6)
  with page.expect_response('**/prompts') as answer:
    page.click('label:has-text("Off the object")')
    page.mouse.click(*spot(page, 50, 30))
  assert answer.value.request.post_data_json['labels'] == [1, 0]
  with page.expect_response('**/prompts') as answer:
    page.click('#undo')
  assert answer.value.request.post_data_json['labels'] == [1]
  said(page, 'predicted IoU')

  with page.expect_response('**/prompts'):
    page.check('#multimask')
  cards = page.locator('.cards label')
  playwright.expect(cards).to_have_count(3)
  cards.nth(1).click()
  wanted = segmenter(picture(), TEXT, points=sent['points'], multimask=True)
  assert page.locator('#score').inner_text() == f'{wanted.scores[1]:.3f}'
  path, _ = downloaded(page, '#save-mask')
  assert np.array_equal(np.asarray(Image.open(path)) == 255, wanted.masks[1])
  page.check('#refine')
  with page.expect_response('**/prompts') as answer:
    page.uncheck('#multimask')
  assert len(answer.value.request.post_data_json['mask']) > 1000
  before = page.locator('#view').screenshot()
  page.locator('#opacity').fill('100')
  assert page.locator('#view').screenshot() != before
  page.click('#clear')
  playwright.expect(page.locator('#result')).to_be_hidden()
  assert page.locator('#text').input_value() == ''
  page.click('summary')
  page.click('#another')
  playwright.expect(page.locator('#choose')).to_be_focused()
  with page.expect_file_chooser():
    page.click('#choose')
  page.click('text=API')
  assert page.url.endswith('/docs')


def test_the_overlay_slider_draws_once_a_frame_and_decodes_nothing(page):
  choose(page)
  ask(page)
  before = drawn(page)
  counts = page.evaluate("""async () => {
    const counts = {};
    for (const [kind, name] of [[String, 'charCodeAt'], [CanvasRenderingContext2D, 'putImageData']]) {
      const original = kind.prototype[name];
      counts[name] = 0;
      kind.prototype[name] = function (...given) {
        counts[name] += 1;
        return original.apply(this, given);
      };
    }
    const slider = document.querySelector('#opacity');
    for (slider.value = 0; slider.value < 100; slider.value = Number(slider.value) + 10) {
      slider.dispatchEvent(new Event('input'));
    }
    await new Promise(requestAnimationFrame);
    return counts;
  }""")
  assert counts == {'charCodeAt': 0, 'putImageData': 1}
  assert np.abs(drawn(page) - before).max() > 50
  page.locator('#opacity').fill('45')
  assert np.abs(drawn(page) - before).max() <= 2  # the browser rounds where it draws over an earlier frame


def test_everything(page, live, segmenter, monkeypatch):
  generator = SamAutomaticMaskGenerator(
    segmenter, points_per_side=2, pred_iou_thresh=0, stability_score_thresh=0, output_mode='coco_rle'
  )
  monkeypatch.setattr(live.service.everything, '_generator', generator)
  choose(page)
  before = page.locator('#view').screenshot()
  with page.expect_response('**/everything') as answer:
    page.click('#everything')
  count = len(answer.value.json()['masks'])
  said(page, f'{count} object')
  assert page.locator('#scored').inner_text() == 'Objects' and page.locator('#score').inner_text() == str(count)
  assert page.locator('#view').screenshot() != before
  assert len(json.loads(downloaded(page, '#save-json')[0].read_text())['masks']) == count
  page.fill('#text', TEXT)
  with page.expect_response('**/everything') as answer:
    page.click('#everything')
  assert answer.value.request.post_data_json == {'text': TEXT}


def test_a_box_and_a_right_click(page, size):
  choose(page)
  if size == 'phone':
    page.click('label:has-text("A box")')
  (x0, y0), (x1, y1) = spot(page, 5, 6), spot(page, 40, 30)
  with page.expect_response('**/prompts') as answer:
    page.mouse.move(x1, y1)
    page.mouse.down()
    page.mouse.move(x0 + 9, y0 + 9)
    page.mouse.move(x0, y0)
    page.mouse.up()
  assert np.allclose(answer.value.request.post_data_json['box'], [5.5, 6.5, 40.5, 30.5], atol=0.6)
  if size == 'desktop':
    with page.expect_response('**/prompts') as answer:
      page.mouse.click(*spot(page, 50, 35), button='right')
    assert answer.value.request.post_data_json['labels'] == [0]


def test_undo_sends_the_mask_that_was_sent_before(page):
  choose(page)
  page.check('#refine')
  asked = []
  for action in (
    lambda: page.mouse.click(*spot(page, 20, 10)),
    lambda: page.mouse.click(*spot(page, 30, 20)),
    lambda: page.mouse.click(*spot(page, 40, 30)),
    lambda: page.click('#undo'),
    lambda: page.click('#undo'),
    lambda: page.mouse.click(*spot(page, 30, 20)),
  ):
    with page.expect_response('**/prompts') as answer:
      action()
    said(page, 'predicted IoU')
    asked.append((answer.value.request.post_data_json, answer.value.json()['masks'][0]['low_res']))
  (first, found), (second, refined), (third, _), *undone, again = asked
  assert 'mask' not in first and (second['mask'], third['mask']) == (found, refined)
  assert undone == [asked[1], asked[0]] and again == asked[1]


def test_the_page_works_by_keyboard_alone(page):
  page.locator('#choose').focus()
  for _ in range(2):
    page.keyboard.press('Tab')
  page.keyboard.press('Enter')  # the second sample; it has a sentence
  said(page, 'predicted IoU')
  page.locator('#view').focus()
  for key in ('ArrowRight', 'Shift+ArrowRight', 'ArrowUp'):
    page.keyboard.press(key)
  with page.expect_response('**/prompts') as answer:
    page.keyboard.press('Enter')
  ((x, y),) = answer.value.request.post_data_json['points']
  assert (x, y) == pytest.approx((192 + 9 * 3.84, 192 - 3.84), abs=0.3)
  with page.expect_response('**/prompts') as answer:
    page.keyboard.press('n')
  assert answer.value.request.post_data_json['labels'] == [1, 0]
  page.keyboard.press('b')
  page.keyboard.press('Shift+ArrowDown')
  page.keyboard.press('Shift+ArrowLeft')
  with page.expect_response('**/prompts') as answer:
    page.keyboard.press('b')
  x0, y0, x1, y1 = answer.value.request.post_data_json['box']
  assert (x1 - x0, y1 - y0) == pytest.approx((30.7, 30.7), abs=0.3)
  for name in ('u', 'Control+z'):
    with page.expect_response('**/prompts'):
      page.keyboard.press(name)
  said(page, 'predicted IoU')
  reached = set()
  for _ in range(30):
    page.keyboard.press('Tab')
    reached.add(
      page.evaluate('() => document.activeElement.id || document.activeElement.name || document.activeElement.tagName')
    )
  assert {
    'text', 'ask', 'tool', 'undo', 'clear', 'multimask', 'refine', 'opacity', 'save-mask',
    'save-overlay', 'save-json', 'view', 'another', 'SUMMARY',
  } <= reached  # fmt: skip


def test_pressing_segment_is_announced_at_once(page):
  told = """(control) => {
    document.querySelector(control).click();
    return document.querySelector('#status').textContent;
  }"""
  choose(page)
  ask(page)
  for control in ('#ask', '#multimask'):
    assert page.evaluate(told, control) == 'Segmenting.'
    said(page, 'predicted IoU')
  page.fill('#text', '')
  assert page.evaluate(told, '#ask') == 'Cleared.'


def test_unknown_words_are_underlined(page):
  page.fill('#text', 'the zebra on qzx the')
  playwright.expect(page.locator('#mirror u')).to_have_text(['zebra', 'qzx'])
  playwright.expect(page.locator('#unknown')).to_contain_text('The model does not know: zebra, qzx.')
  page.fill('#text', 'the red circle')
  playwright.expect(page.locator('#unknown')).to_have_text('')


def test_a_large_picture_is_shown_scaled_and_segmented_at_full_size(browser, live, segmenter):
  page = opened(browser, live.port, **SIZES['phone'])
  said(page, 'Ready.')
  image = np.asarray(Image.fromarray(picture()).resize((2800, 2000)))
  choose(page, image)
  ask(page)
  assert page.locator('#view').bounding_box()['width'] <= 390
  assert page.evaluate('() => document.documentElement.scrollWidth <= innerWidth')
  path, _ = downloaded(page, '#save-mask')
  assert np.array_equal(np.asarray(Image.open(path)) == 255, segmenter(image, TEXT).mask)
  page.context.close()
  assert page.wrong == []


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_there_are_no_serious_accessibility_problems(browser, live, size, scheme):
  page = opened(browser, live.port, color_scheme=scheme, bypass_csp=True, **SIZES[size])  # axe adds its own styles
  said(page, 'Ready.')
  assert accessible(page) == []
  choose(page)
  page.check('#multimask')
  ask(page, 'the zebra')
  assert accessible(page) == []
  assert page.evaluate('() => document.documentElement.scrollWidth <= innerWidth')
  page.goto(f'http://127.0.0.1:{live.port}/docs')
  assert accessible(page) == []
  page.context.close()
  assert page.wrong == []


def test_a_token_is_asked_for_once(browser, segmenter):
  with running(segmenter, token='a-token-of-24-characters') as service:
    page = opened(browser, service.port)
    for token, told in (('wrong', ''), ('a-token-of-24-characters', 'This token is not right.')):
      playwright.expect(page.locator('#token-problem')).to_have_text(told)
      page.fill('#token-text', token)
      page.keyboard.press('Enter')
    said(page, 'Ready.')
    choose(page)
    ask(page)
    page.reload()
    said(page, 'Ready.')
    page.context.close()
