# make demo    installs the package into .venv and trains on the embedded data
# make test    runs the whole test suite
# make check   runs lint, type checks and fast tests; use it before every commit
# make fast    runs the fast tests alone
# make docs    builds the documentation site in build/site
# make live    builds the page that runs in the browser, in build/live
# make notebooks  executes the notebooks into build/notebooks, with small random files in place of downloads
# make fuzz    tries mutated inputs, signals and full disks; FUZZ_SECONDS=600 runs longer
# Set PYTHON to use another interpreter: make demo PYTHON=python3.12
# Set WORKERS to the number of test processes; 3 suit 2 cores, because many tests wait for processes or servers

PYTHON ?= python3
VENV := .venv
FUZZ_SECONDS ?= 120
FUZZ_SEED ?= 0
WORKERS ?= 3
PYTEST := JAX_PLATFORMS=cpu $(VENV)/bin/python -m pytest --numprocesses=$(WORKERS) --dist=worksteal

.PHONY: demo test check fast lint docs live notebooks fuzz clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(VENV)/bin/python -m ditsam_jax.train --config=configs/ldit.py:shapes --workdir=runs/demo
	@echo
	@echo 'pictures: runs/demo/predictions.png     numbers: runs/demo/metrics.json     model: runs/demo/model'
	@echo 'next, after ". $(VENV)/bin/activate":'
	@echo '  python -m ditsam_jax.predict --checkpoint=runs/demo --image=docs/scene.png --text="the large red circle" --output=runs/demo/scene'
	@echo '  python -m ditsam_jax.evaluate --checkpoint=shapes --split=test    # a shipped model, trained for longer'
	@echo '  python -m ditsam_jax.train --config=configs/edit.py:shapes        # the same for E-DIT'

test: $(VENV)/.installed-test
	$(PYTEST)

check: $(VENV)/.installed-check
	$(MAKE) --no-print-directory --jobs=2 lint fast

fast: $(VENV)/.installed-check
	$(PYTEST) --quiet -m 'not slow and not multiprocess'

lint: $(VENV)/.installed-check
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build  # --quiet would also ignore warnings, which must fail

live: | $(VENV)/bin/python
	$(VENV)/bin/python docs/live/build.py

# The first cell goes to the root of the repository. Without XLA's optimisations small models compile faster.
execute = JAX_PLATFORMS=cpu JAX_COMPILATION_CACHE_DIR=$(CURDIR)/build/notebooks/compiled $(VENV)/bin/python -m papermill \
  --no-progress-bar notebooks/$(1).ipynb build/notebooks/$(1).ipynb -p WORK build/notebooks/$(1)
notebooks: $(VENV)/.installed-notebooks
	rm -rf build/notebooks && mkdir -p build/notebooks
	$(call execute,quickstart) -p STEPS 45
	JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(call execute,from_pytorch) -p STAND_INS True
	JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(call execute,train_on_tpu) -p STAND_INS True

fuzz: $(VENV)/.installed-test
	JAX_PLATFORMS=cpu $(VENV)/bin/python -m tests.fuzz --seconds=$(FUZZ_SECONDS) --seed=$(FUZZ_SEED)

# Python 3.11's pip spends minutes on the packages of the tests; from 26.3 on pip prints warnings of setuptools.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo 'error: $(PYTHON) is missing or older than 3.11; use a newer one: make PYTHON=python3.12' >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo 'error: $(PYTHON) cannot create environments; install its venv module (Debian, Ubuntu: python3-venv)' >&2; exit 1; }
	@$(VENV)/bin/python -m pip install --quiet --upgrade 'pip>=25,<26.3'

$(VENV)/.installed: requirements.txt pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet -r requirements.txt
	@touch $@

$(VENV)/.installed-%: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --editable '.[$*]'
	@touch $@

clean:
	rm -rf $(VENV)
