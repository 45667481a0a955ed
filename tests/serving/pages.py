"""The page in a browser, for tests."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from tests.fuzz.seeds import picture
from tests.serving.running import png

playwright = pytest.importorskip('playwright.sync_api', reason="needs the extra 'test'")
axe = pytest.importorskip('axe_playwright_python.sync_playwright', reason="needs the extra 'test'")

TEXT = 'the red circle'


def opened(browser, port, path='/', **context):
  """Opens a page that records console errors and requests to other servers."""
  page = browser.new_context(accept_downloads=True, **context).new_page()
  page.set_default_timeout(60_000)
  page.wrong = []
  page.asked = []
  here = f'http://127.0.0.1:{port}/'
  page.expected = None  # a part of messages that are not wrong
  page.on(
    'console',
    lambda message: (
      message.type in ('error', 'warning')
      and not (page.expected and page.expected in message.text)
      and page.wrong.append(message.text)
    ),
  )
  page.on('pageerror', lambda error: page.wrong.append(str(error)))
  page.on('request', lambda request: request.url.startswith((here, 'blob:')) or page.wrong.append(request.url))
  page.on('request', lambda request: page.asked.append(request.url))
  page.goto(here.rstrip('/') + path)
  return page


def said(page, text):
  playwright.expect(page.locator('#status')).to_contain_text(text)


def give(page, name='scene.png', content=None):
  page.locator('#file').set_input_files({'name': name, 'mimeType': 'image/png', 'buffer': content or png(picture())})


def choose(page, image=None, name='scene.png'):
  give(page, name, None if image is None else png(image))
  said(page, 'Type what to segment')


def spot(page, x, y):
  """Returns the screen position of a pixel of the picture."""
  page.locator('#view').scroll_into_view_if_needed()
  frame = page.locator('#view').bounding_box()
  return frame['x'] + (x + 0.5) / 56 * frame['width'], frame['y'] + (y + 0.5) / 40 * frame['height']


def drawn(page):
  """Returns the pixels of the canvas after the next frame."""
  url = page.evaluate("""async () => {
    await new Promise(requestAnimationFrame);
    return document.querySelector('#view').toDataURL();
  }""")
  return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(',')[2])))).astype(int)


def downloaded(page, button):
  with page.expect_download() as download:
    page.click(button)
  return download.value.path(), download.value.suggested_filename


def ask(page, text=TEXT):
  page.fill('#text', text)
  page.click('#ask')
  said(page, 'predicted IoU')


def accessible(page):
  """Returns axe-core's serious findings."""
  found = axe.Axe().run(page).response['violations']
  return [(each['id'], each['nodes'][0]['html']) for each in found if each['impact'] in ('serious', 'critical')]
