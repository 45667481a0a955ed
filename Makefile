# make demo    trains on the embedded data in an environment of its own, .venv
# make test    the whole suite
# make check   lint, types and the fast tests, before every commit
# make docs    the documentation site, in build/site
# make fuzz    mutated inputs, signals and full disks; FUZZ_SECONDS=600 for longer
# PYTHON names another interpreter: make demo PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
FUZZ_SECONDS ?= 120
FUZZ_SEED ?= 0
PYTEST := JAX_PLATFORMS=cpu $(VENV)/bin/python -m pytest --numprocesses=2 --dist=worksteal

.PHONY: demo test check lint docs fuzz clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(VENV)/bin/python -m ditsam_jax.train --config=configs/ldit.py:shapes --workdir=runs/demo
	@echo
	@echo 'pictures: runs/demo/predictions.png     numbers: runs/demo/metrics.json     model: runs/demo/model'
	@echo 'next, after ". $(VENV)/bin/activate":'
	@echo '  python -m ditsam_jax.predict --checkpoint=runs/demo --image=docs/scene.png --text="the large red circle"'
	@echo '  python -m ditsam_jax.evaluate --checkpoint=shapes --split=test    # a model that was trained for longer'
	@echo '  python -m ditsam_jax.train --config=configs/edit.py:shapes        # the same for E-DIT'

test: $(VENV)/.installed-test
	$(PYTEST)

check: lint
	$(PYTEST) --quiet -m 'not slow and not multiprocess'

lint: $(VENV)/.installed-check
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet

fuzz: $(VENV)/.installed-test
	JAX_PLATFORMS=cpu $(VENV)/bin/python -m tests.fuzz --seconds=$(FUZZ_SECONDS) --seed=$(FUZZ_SEED)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo 'error: $(PYTHON) is missing or older than 3.11; name a newer one: make PYTHON=python3.12' >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo 'error: $(PYTHON) cannot make environments; install its venv module (Debian, Ubuntu: python3-venv)' >&2; exit 1; }

$(VENV)/.installed: requirements.txt pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet -r requirements.txt
	@touch $@

$(VENV)/.installed-%: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --editable '.[$*]'
	@touch $@

clean:
	rm -rf $(VENV)
