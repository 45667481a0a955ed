"""The live page in Chromium: time to the first mask, and of the next ones.

    make live && python benchmarks/live.py

Serves build/live on this machine. Every round has a new browser profile, so nothing is cached. It opens the page and
chooses a scene, whose sentence is asked as soon as the models are there. Then it asks twelve other sentences (each
encodes the image again), and clicks in twelve places (the first encodes the image). Times end with the mask on screen.
"""

import argparse
import functools
import statistics
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from playwright.sync_api import sync_playwright

from benchmarks import chromium

SENTENCES = [
  f'the {colour} {kind}' for colour in ('red', 'green', 'blue', 'purple') for kind in ('cross', 'square', 'star')
]
# Calls `act` and returns the milliseconds until the answer is drawn.
MEASURE = """(act) => new Promise((resolve) => {
  const status = document.getElementById('status');
  const began = performance.now();
  new MutationObserver((_, observer) => {
    if (!/redicted IoU/.test(status.textContent)) return;
    observer.disconnect();
    requestAnimationFrame(() => setTimeout(() => resolve([performance.now() - began, performance.now()])));
  }).observe(status, { childList: true });
  act();
})"""
CHOOSE = f'() => ({MEASURE})(() => document.querySelector(\'[data-sample*="shapes-2"]\').click())'
ASK = f"""(text) => ({MEASURE})(() => {{
  document.getElementById('text').value = text;
  document.getElementById('sentence').requestSubmit();
}})"""
CLICK = f"""([x, y]) => ({MEASURE})(() => {{
  document.getElementById('clear').click();
  const canvas = document.getElementById('view');
  const frame = canvas.getBoundingClientRect();
  const place = {{ clientX: frame.left + x * frame.width, clientY: frame.top + y * frame.height }};
  for (const kind of ['pointerdown', 'pointerup']) {{
    canvas.dispatchEvent(new PointerEvent(kind, {{ ...place, isPrimary: true, pointerType: 'touch', button: 0 }}));
  }}
}})"""


class _Handler(SimpleHTTPRequestHandler):
  def log_message(self, *_):
    pass


def main() -> None:
  """Runs the benchmark."""
  parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
  parser.add_argument('--folder', type=Path, default=Path('build/live'))
  parser.add_argument('--rounds', type=int, default=5)
  options = parser.parse_args()
  server = ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(_Handler, directory=str(options.folder)))
  threading.Thread(target=server.serve_forever, daemon=True).start()
  times: dict[str, list[float]] = {'first mask, from opening the page': [], 'next sentences': [], 'next clicks': []}
  first, sentences, clicks = times.values()
  with sync_playwright() as playwright:
    browser = chromium.launched(playwright) or sys.exit('error: there is no Chromium; .ci/install_browser installs it')
    print('Chromium', browser.version)
    for _ in range(options.rounds):
      page = browser.new_context(bypass_csp=True).new_page()  # playwright evaluates strings
      page.goto(f'http://127.0.0.1:{server.server_address[1]}/')
      first.append(page.evaluate(CHOOSE)[1])  # since the page was opened
      sentences += [page.evaluate(ASK, text)[0] for text in SENTENCES]
      clicks += [page.evaluate(CLICK, [0.2 + 0.15 * (i % 4), 0.2 + 0.3 * (i // 4)])[0] for i in range(12)]
      page.context.close()
    browser.close()
  server.shutdown()
  for name, found in times.items():
    print(
      f'{name:34} median {statistics.median(found):6.0f} ms, '
      f'{min(found):.0f} to {max(found):.0f} ms, {len(found)} times'
    )


if __name__ == '__main__':
  main()
