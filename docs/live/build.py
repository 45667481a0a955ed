"""Puts the live page together: python docs/live/build.py --output=build/live

The page is this folder, modules and styles shared with the page of ditsam_jax.serve, and ONNX Runtime Web, which npm
downloads in the version of package-lock.json. Any file server can serve the result, for example
`python -m http.server --directory build/live`. `mkdocs build` puts it into the site. --models exports the models again.
"""

import argparse
import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SHARED = ROOT / 'ditsam_jax' / 'serving' / 'page'
MODULES = (
  'base.css',
  'controls.js',
  'icon.svg',
  'open.js',
  'page.css',
  'prompt.js',
  'rle.js',
  'save.js',
  'view.js',
  'words.js',
)
MODELS = ('shapes', 'sam_shapes_multimask')
PACKAGES = ROOT / 'build' / 'live-packages'
# Names that every file server knows the type of.
VENDOR = {'ort.wasm.bundle.min.mjs': 'ort.js', 'ort-wasm-simd-threaded.wasm': 'ort.wasm'}
OWN = ('index.html', '*.css', '*.js', 'models/**/*')


class Unavailable(Exception):
  """ONNX Runtime Web cannot be downloaded, for the reason in the message."""


def assemble(output: Path) -> None:
  """Writes the page to `output`. Raises Unavailable if npm is missing or fails."""
  runtime = _runtime()
  for pattern in OWN:
    for file in HERE.glob(pattern):
      if file.is_file():
        _copy(file, output / file.relative_to(HERE))
  for name in MODULES:
    _copy(SHARED / name, output / 'shared' / name)
  for file in (SHARED / 'samples').iterdir():
    _copy(file, output / 'shared' / 'samples' / file.name)
  for name, ours in VENDOR.items():
    _copy(runtime / name, output / 'vendor' / ours)


def _copy(source: Path, target: Path) -> None:
  target.parent.mkdir(parents=True, exist_ok=True)
  shutil.copyfile(source, target)


def _runtime() -> Path:
  """Downloads ONNX Runtime Web unless it is there in the right version; returns its folder."""
  PACKAGES.parent.mkdir(parents=True, exist_ok=True)
  with open(f'{PACKAGES}.lock', 'w') as file:
    fcntl.flock(file, fcntl.LOCK_EX)  # one process downloads, others wait
    _download()
  return PACKAGES / 'node_modules' / 'onnxruntime-web' / 'dist'


def _download() -> None:
  lock, finished = PACKAGES / 'package-lock.json', PACKAGES / 'node_modules' / '.package-lock.json'
  if not finished.is_file() or lock.read_bytes() != (HERE / lock.name).read_bytes():
    npm = shutil.which('npm')
    if npm is None:
      raise Unavailable('npm is missing; install Node.js (Debian, Ubuntu: npm)')
    shutil.rmtree(PACKAGES, ignore_errors=True)
    for name in ('package.json', lock.name):
      _copy(HERE / name, PACKAGES / name)
    command = [npm, 'ci', '--ignore-scripts', '--no-audit', '--no-fund']
    done = subprocess.run(command, cwd=PACKAGES, capture_output=True, text=True)
    if done.returncode:
      reason = next((line for line in done.stderr.splitlines() if line.strip()), 'no reason given')
      raise Unavailable(f'npm cannot download ONNX Runtime Web ({reason}); see the command in {PACKAGES}: npm ci')


def export_models() -> None:
  """Exports the shipped models of the page; needs the extra 'onnx'."""
  from ditsam_jax import export

  for name in MODELS:
    folder = HERE / 'models' / name
    export.main([f'--checkpoint={name}', '--format=onnx', '--dtype=float16', f'--output={folder}'])


def on_post_build(config, **_) -> None:
  """Puts the page into the site; a hook of mkdocs."""
  from mkdocs.exceptions import PluginError

  try:
    assemble(Path(config['site_dir'], 'live'))
  except Unavailable as error:
    raise PluginError(str(error)) from error


def main() -> int:
  """Runs the command."""
  parser = argparse.ArgumentParser(prog='python docs/live/build.py', description=(__doc__ or '').split('\n')[0])
  parser.add_argument('--output', type=Path, default=ROOT / 'build' / 'live', help='default: build/live')
  parser.add_argument('--models', action='store_true', help='export the models again first')
  options = parser.parse_args()
  try:
    if options.models:
      export_models()
    assemble(options.output)
  except Unavailable as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  print(f'{options.output}: serve it with python -m http.server --directory {options.output}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
