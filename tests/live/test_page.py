"""The live page: the same masks as Python, in the browser alone, by mouse, touch and keyboard."""

import base64
import io
import json
import re
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from ditsam_jax.data.datasets import scenes_config
from ditsam_jax.data.shapes.expressions import describe
from ditsam_jax.data.shapes.scenes import make_scene, scene_rng
from ditsam_jax.geometry.masks import decode_rle
from ditsam_jax.inference.segmenter import Segmenter
from ditsam_jax.storage.description import data_config
from tests.browsing import HOLD, RELEASE, SIZES
from tests.live.conftest import LIVE

playwright = pytest.importorskip('playwright.sync_api', reason="needs the extra 'test'")
axe = pytest.importorskip('axe_playwright_python.sync_playwright', reason="needs the extra 'test'")

pytestmark = pytest.mark.slow
SAMPLES = 50


class Sample(NamedTuple):
  """A picture, a sentence about an object, and a point on the object."""

  image: np.ndarray
  text: str
  point: tuple[float, float]


def samples(count):
  """Samples of the test split; every fifth picture is cropped or enlarged."""
  scenes = scenes_config(data_config('shapes')['scenes'])
  found = []
  for index in range(count):
    rng = scene_rng(scenes, 'test', index)
    scene = make_scene(scenes, rng)
    expressions = describe(scene.shapes, scenes.image_size, 1, rng)
    number = next(i for i in np.roll(range(len(expressions)), index) if expressions[i])
    rows, columns = np.nonzero(scene.masks[number])
    middle = len(rows) // 2
    image, point = scene.image, (columns[middle] + 0.5, rows[middle] + 0.5)
    if index % 5 == 4:
      image, point = (
        np.asarray(Image.fromarray(image[8:].copy()).resize((200, 188))),
        (point[0] * 1.5625, (point[1] - 8) * 188 / 120),
      )
    found.append(Sample(image, expressions[number][0][0], point))
  return found


def png(image):
  stream = io.BytesIO()
  Image.fromarray(image).save(stream, 'PNG')
  return stream.getvalue()


def iou(one, other):
  union = (one | other).sum()
  return (one & other).sum() / union if union else 1.0  # both say that nothing is there


@pytest.fixture(scope='module')
def segmenters():
  """Python's segmenters of the page's two models."""
  return {name: Segmenter(name) for name in ('shapes', 'sam_shapes_multimask')}


def opened(browser, site, **context):
  """Opens the page; records console errors and requests to other hosts."""
  page = browser.new_context(accept_downloads=True, **context).new_page()
  page.set_default_timeout(60_000)
  page.wrong = []
  page.on('console', lambda message: message.type in ('error', 'warning') and page.wrong.append(message.text))
  page.on('pageerror', lambda error: page.wrong.append(str(error)))
  page.on('request', lambda request: request.url.startswith((site, 'blob:')) or page.wrong.append(request.url))
  page.goto(site)
  playwright.expect(page.locator('#model')).to_have_text('in your browser')
  return page


@pytest.fixture(params=SIZES)
def page(browser, site, request):
  found = opened(browser, site, **SIZES[request.param])
  found.size = request.param
  yield found
  found.context.close()
  assert found.wrong == []


def said(page, text):
  playwright.expect(page.locator('#status')).to_contain_text(text)


def give(page, content, name='scene.png'):
  page.locator('#file').set_input_files({'name': name, 'mimeType': 'image/png', 'buffer': content})


def choose(page, image, name='scene.png'):
  give(page, png(image), name)
  playwright.expect(page.locator('#name')).to_have_text(f'{name}, {image.shape[1]} × {image.shape[0]}')


def ask(page, text):
  page.fill('#text', text)
  page.click('#ask')
  said(page, 'redicted IoU')


def answered(page):
  """The answer as JSON, and its mask."""
  with page.expect_download() as download:
    page.click('#save-json')
  content = json.loads(download.value.path().read_text())
  return content, decode_rle(content['masks'][0]['rle']).astype(bool)


def spot(page, x, y, width=128, height=128):
  """The screen position of a point of the picture."""
  page.locator('#view').scroll_into_view_if_needed()
  frame = page.locator('#view').bounding_box()
  return frame['x'] + x / width * frame['width'], frame['y'] + y / height * frame['height']


@pytest.mark.verifies('Masks of the live page, for 50 sentences and 50 clicks', against='Segmenter', within='IoU 0.99')
def test_masks_equal_those_of_python(browser, site, segmenters):
  page = opened(browser, site, bypass_csp=True)  # playwright evaluates strings
  asked = samples(SAMPLES)
  found = page.evaluate(
    """async (samples) => {
      const [{ decode }, { encoded }, { Model }] = await Promise.all(['image', 'mask', 'model'].map((name) => import(`/${name}.js`)));
      const get = async (url) => (await fetch(url)).arrayBuffer();  // the page has started ONNX Runtime
      const load = (name) => Model.load(new URL(`/models/${name}/`, location), get);
      const [words, clicks] = [await load('shapes'), await load('sam_shapes_multimask')];
      const answers = [];
      for (const { file, text, point: [x, y] } of samples) {
        const bytes = Uint8Array.from(atob(file), (character) => character.charCodeAt());
        const picture = await decode(new Blob([bytes], { type: 'image/png' }));
        const answer = [];
        for (const [model, prompt] of [[words, { text }], [clicks, { points: [{ x, y, label: 1 }] }]]) {
          const { mask, score } = await model.segment(picture, prompt);
          answer.push({ score, rle: encoded(mask, picture.width, picture.height) });
        }
        answers.push(answer);
      }
      return JSON.stringify(answers);
    }""",  # noqa: E501
    [
      {'file': base64.b64encode(png(sample.image)).decode(), 'text': sample.text, 'point': list(sample.point)}
      for sample in asked
    ],
  )
  page.context.close()
  assert page.wrong == []
  areas, named = [], 0
  for sample, (by_words, by_click) in zip(asked, json.loads(found)):
    expected = segmenters['shapes'](sample.image, sample.text)
    assert iou(decode_rle(by_words['rle']).astype(bool), expected.mask) >= 0.99, sample.text
    assert by_words['score'] == pytest.approx(expected.score, abs=1e-3)
    named += expected.area > 20
    expected = segmenters['sam_shapes_multimask'](sample.image, points=[sample.point], multimask=True)
    assert iou(decode_rle(by_click['rle']).astype(bool), expected.mask) >= 0.99, sample.point
    areas.append(expected.area)
  assert min(areas) > 20 and named > 45  # no comparison of empty masks


def test_every_control(page, segmenters):
  sample = samples(1)[0]
  choose(page, sample.image)
  ask(page, sample.text)
  content, mask = answered(page)
  expected = segmenters['shapes'](sample.image, sample.text)
  assert iou(mask, expected.mask) >= 0.99
  assert (content['model'], content['prompt']) == ('shapes', {'text': sample.text})
  assert page.locator('#score').inner_text() == f'{content["masks"][0]["score"]:.3f}'
  assert page.locator('#area').inner_text() == f'{100 * mask.mean():.1f} %'
  with page.expect_download() as download:
    page.click('#save-mask')
  assert np.array_equal(np.asarray(Image.open(download.value.path()).convert('L')) == 255, mask)
  with page.expect_download() as download:
    page.click('#save-overlay')
  overlay = np.asarray(Image.open(download.value.path()).convert('RGB')).astype(int)
  assert (np.abs(overlay - sample.image).sum(2) > 30)[mask].mean() > 0.5

  page.click('#clear')
  playwright.expect(page.locator('#result')).to_be_hidden()
  before = page.locator('#view').screenshot()
  if page.size == 'phone':
    page.touchscreen.tap(*spot(page, *sample.point))
  else:
    page.mouse.click(*spot(page, *sample.point))
  said(page, 'redicted IoU')
  content, mask = answered(page)
  assert content['model'] == 'sam_shapes_multimask' and content['prompt']['labels'] == [1]
  assert np.allclose(content['prompt']['points'], [sample.point], atol=0.6)
  assert page.locator('#view').screenshot() != before
  page.click('label:has-text("Off the object")')
  page.mouse.click(*spot(page, 3, 3))
  said(page, 'redicted IoU')
  assert answered(page)[0]['prompt']['labels'] == [1, 0]
  page.click('#undo')
  said(page, 'redicted IoU')
  assert answered(page)[0]['prompt']['labels'] == [1]
  page.click('#clear')
  page.click('label:has-text("A box")')
  page.mouse.move(*spot(page, 90, 100))
  page.mouse.down()
  page.mouse.move(*spot(page, 40, 50))
  page.mouse.move(*spot(page, 20, 30))
  page.mouse.up()
  said(page, 'redicted IoU')
  assert np.allclose(answered(page)[0]['prompt']['box'], [20, 30, 90, 100], atol=0.6)
  page.click('#another')
  playwright.expect(page.locator('#choose')).to_be_focused()


def test_a_prompt_that_waits_for_its_model(browser, site):
  page = browser.new_context(accept_downloads=True).new_page()
  page.route('**/sam_shapes_multimask/decoder.onnx', lambda route: None)  # never arrives
  page.goto(site)
  page.click('[data-sample*="shapes-2"]')
  said(page, 'redicted IoU')
  sentence = answered(page)[0]['prompt']
  busy, middle = page.locator('#busy'), spot(page, 100, 200, 384, 384)
  page.fill('#text', '')
  page.mouse.click(*middle)
  playwright.expect(busy).to_be_visible()
  assert answered(page)[0]['prompt'] == sentence  # that of the mask
  page.click('#clear')
  playwright.expect(busy).to_be_hidden()
  page.mouse.click(*middle)
  playwright.expect(busy).to_be_visible()
  choose(page, samples(1)[0].image)
  playwright.expect(busy).to_be_hidden()
  page.context.close()


def test_the_picture_chosen_last_stays(browser, site):
  page = opened(browser, site)
  image, name, held = samples(1)[0].image, page.locator('#name'), []
  page.route('**/samples/shapes-1.jpg', lambda route: held.append(route))
  with page.expect_request('**/samples/shapes-1.jpg'):
    page.click('[data-sample*="shapes-1"]')
  choose(page, image, 'after a sample.png')
  with page.expect_response('**/samples/shapes-1.jpg'):
    held.pop().continue_()
  ask(page, 'the red circle')
  playwright.expect(name).to_contain_text('after a sample.png')

  for last, slow in (('after a file.png', png(image)), ('after no picture.png', b'no picture')):
    page.evaluate(HOLD)
    give(page, slow, 'slow.png')
    choose(page, image, last)
    page.evaluate(RELEASE)
    playwright.expect(name).to_contain_text(last)
    said(page, 'Type what to segment')

  page.evaluate(HOLD)
  give(page, png(image), 'slow.png')
  page.click('#another')
  page.evaluate(RELEASE)
  playwright.expect(page.locator('#work')).to_be_hidden()
  page.context.close()
  assert page.wrong == []


def test_pressing_segment_is_announced_at_once(browser, site):
  page = opened(browser, site)
  page.click('[data-sample*="shapes-2"]')
  said(page, 'redicted IoU')
  told = """() => {
    document.querySelector('#ask').click();
    return document.querySelector('#status').textContent;
  }"""
  assert page.evaluate(told) == 'Segmenting.'
  said(page, 'redicted IoU')
  page.context.close()
  assert page.wrong == []


def test_it_works_without_network_once_it_is_loaded(browser, site):
  page = opened(browser, site, **SIZES['phone'])
  page.click('[data-sample*="shapes-2"]')
  said(page, 'redicted IoU')
  page.context.set_offline(True)
  ask(page, 'the red circle')
  page.click('#clear')
  page.touchscreen.tap(*spot(page, 100, 200, 384, 384))
  said(page, 'redicted IoU')
  page.context.close()
  assert page.wrong == []


def test_words_other_files_and_the_keyboard(browser, site):
  page = opened(browser, site)
  page.fill('#text', 'the zebra left of qzx the')
  playwright.expect(page.locator('#mirror u')).to_have_text(['zebra', 'qzx'])
  playwright.expect(page.locator('#unknown')).to_contain_text('The model does not know: zebra, qzx.')
  page.click('summary:has-text("Words it knows")')
  assert {'circle', 'red', 'left', 'largest'} <= set(page.locator('#words').inner_text().split(', '))
  give(page, b'no picture', 'notes.png')
  said(page, 'notes.png: this browser cannot show it as a picture')

  page.locator('#samples button').first.focus()
  page.keyboard.press('Enter')
  said(page, 'redicted IoU')
  page.locator('#view').focus()
  page.keyboard.press('ArrowRight')
  page.keyboard.press('n')
  said(page, 'redicted IoU')
  assert answered(page)[0]['prompt']['labels'] == [0]
  page.locator('#view').focus()
  page.keyboard.press('u')
  said(page, 'redicted IoU')
  assert 'labels' not in answered(page)[0]['prompt']
  page.context.close()
  assert page.wrong == []


@pytest.mark.parametrize(('size', 'scheme'), [('desktop', 'dark'), ('phone', 'light')])
def test_there_are_no_serious_accessibility_problems(browser, site, size, scheme):
  page = opened(browser, site, color_scheme=scheme, bypass_csp=True, **SIZES[size])  # axe adds its own styles
  for text in ('', 'the red zebra'):
    if text:
      page.click('[data-sample*="shapes-1"]')
      ask(page, text)
    for summary in page.locator('summary').all():
      summary.click()
    found = axe.Axe().run(page).response['violations']
    assert [each['id'] for each in found if each['impact'] in ('serious', 'critical')] == []
    assert page.evaluate('() => document.documentElement.scrollWidth <= innerWidth')
  page.context.close()
  assert page.wrong == []


def test_a_missing_model_is_reported(browser, site):
  page = browser.new_page()
  page.route('**/decoder.onnx', lambda route: route.fulfill(status=404))
  page.goto(site)
  playwright.expect(page.locator('#status')).to_contain_text('decoder.onnx cannot be loaded (404)')
  playwright.expect(page.locator('#model')).to_have_text('not loaded')
  page.close()


def test_the_models_fit_in_six_megabytes():
  sizes = [file.stat().st_size for file in (LIVE / 'models').rglob('*') if file.is_file()]
  assert len(sizes) >= 8 and sum(sizes) <= 6e6


def test_the_page_names_no_other_host():
  for file in [*LIVE.glob('*.js'), *LIVE.glob('*.html'), *LIVE.glob('*.css')]:
    assert not re.findall(r'https?://', file.read_text()), file
