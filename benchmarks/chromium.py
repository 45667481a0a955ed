"""The installed Chromium, for tests, benchmarks and the docs' pictures."""

import shutil

NAMES = ('chromium', 'chromium-browser', 'google-chrome')


def launched(playwright):
  """Launches it with playwright; returns the browser, or None where there is no Chromium."""
  path = next(filter(None, map(shutil.which, NAMES)), None)
  return path and playwright.chromium.launch(executable_path=path, args=['--no-sandbox'])
