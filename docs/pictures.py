"""Draws the docs' pictures that show the shipped `shapes` again: python docs/pictures.py

Needs Chromium and the extra `test`. predictions.png and clicks.png are what `ditsam_jax.evaluate` draws, live.png shows
the page that docs/live/build.py puts together, serving.png and serving-phone.png the page of `ditsam_jax.serve`.
"""

import argparse
import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[0] = str(ROOT)

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from benchmarks import chromium

BUILD = ROOT / 'build' / 'pictures'
EVALUATIONS = {
  'predictions.png': ('--protocol=standard',),
  'clicks.png': ('--clicks=5', '--limit=1000'),
}
DESKTOP = {'viewport': {'width': 1280, 'height': 900}}
WIDTH = 1280  # pixels
READY = re.compile(r'(?:ready: |\()(http://[\d.]+:\d+/)')  # as ditsam_jax.serve and http.server say it
PHONE = {'viewport': {'width': 390, 'height': 844}, 'has_touch': True, 'is_mobile': True, 'color_scheme': 'dark'}


def main() -> None:
  argparse.ArgumentParser(description=__doc__.split('\n')[0]).parse_args()
  for name, options in EVALUATIONS.items():
    folder = BUILD / Path(name).stem
    command = [sys.executable, '-m', 'ditsam_jax.evaluate', '--checkpoint=shapes', '--split=test', *options]
    subprocess.run([*command, f'--output={folder}'], cwd=ROOT, check=True)
    shrink(folder / name, DOCS / name)
  subprocess.run([sys.executable, DOCS / 'live' / 'build.py', f'--output={BUILD / "live"}'], check=True)
  with sync_playwright() as playwright:
    browser = chromium.launched(playwright) or sys.exit('error: there is no Chromium; .ci/install_browser installs it')
    server = [sys.executable, '-m', 'http.server', '--bind=127.0.0.1', f'--directory={BUILD / "live"}', '0']
    with served(server) as url:
      take(browser, url, 'live.png', DESKTOP)
    with served([sys.executable, '-m', 'ditsam_jax.serve', '--checkpoint=shapes', '--port=0']) as url:
      take(browser, url, 'serving.png', DESKTOP, click=True)
      take(browser, url, 'serving-phone.png', PHONE, click=True)
    browser.close()


def shrink(source: Path, target: Path) -> None:
  """Writes a picture at most WIDTH wide, in 256 colours, which makes it a quarter as large."""
  image = Image.open(source).convert('RGB')
  image.thumbnail((WIDTH, image.height), Image.Resampling.LANCZOS)
  image.quantize(256, method=Image.Quantize.MEDIANCUT).save(target, optimize=True)


@contextlib.contextmanager
def served(command: list[str]) -> Iterator[str]:
  """Runs a server on a free port; yields the URL that it prints."""
  unbuffered = {**os.environ, 'PYTHONUNBUFFERED': '1'}
  both = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT}
  with subprocess.Popen(command, cwd=ROOT, env=unbuffered, text=True, **both) as process:
    assert process.stdout is not None
    try:
      url = next((match[1] for line in process.stdout if (match := READY.search(line))), None)
      yield url or sys.exit(f'error: {" ".join(command)} ended with {process.wait()}')
    finally:
      process.terminate()


def take(browser: Browser, url: str, name: str, context: dict, click: bool = False) -> None:
  """Photographs a page that shows a sentence's mask, with a click on the object if wanted."""
  page = browser.new_context(**context).new_page()
  page.goto(url)
  page.locator('#samples button').nth(1).click()
  answered(page)
  if click:
    frame = page.locator('#view').bounding_box()
    assert frame is not None
    page.mouse.click(frame['x'] + 0.53 * frame['width'], frame['y'] + 0.36 * frame['height'])
    answered(page)
  page.evaluate('window.scrollTo(0, 0)')
  page.screenshot(path=BUILD / name)
  shrink(BUILD / name, DOCS / name)
  page.context.close()


def answered(page: Page) -> None:
  """Waits for the answer to the last prompt."""
  expect(page.locator('#busy')).to_be_hidden(timeout=60_000)
  expect(page.locator('#status')).to_contain_text('redicted IoU', timeout=60_000)


if __name__ == '__main__':
  main()
