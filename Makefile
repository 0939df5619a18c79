# make demo      everything from nothing: environment, training, evaluation, a page to look at
# make demo-objects  the same on objects of worlds, which are written to data/world_objects first
# make test      what a change is likely to break, in minutes
# make test-all  all tests but the longest
# make test-long  the longest: real photographs, soaks, whole experiments
# make lint      formatting and lint
# make docs      the site, into site/
# All are safe to interrupt and to repeat: what is done is kept.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
LVSM := $(VENV)/bin/lvsm
# Tests run in so many processes.
JOBS ?= 2
PYTEST := $(PY) -m pytest --numprocesses=$(JOBS) --dist=worksteal
INSTALLED := $(VENV)/.installed

.PHONY: help demo demo-objects test test-all test-slow test-long lint docs install clean

help:
	@sed -n 's/^# //p' Makefile

install: $(INSTALLED)

# The stamp is written last, so that an interrupted installation is taken up again.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 ..."; exit 1; }
	@echo "==> making the environment $(VENV) and installing (about a minute)"
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test,lpips,tensorboard]"
	@touch $@

demo: $(INSTALLED)
	@echo "==> training configs/worlds_64.py into runs/worlds_64, on worlds made meanwhile (some minutes)"
	$(LVSM) train --config=configs/worlds_64.py --workdir=runs/worlds_64
	@echo "==> evaluating it on worlds that were held out, beside the weights that come with lvsm_jax"
	$(LVSM) eval --config=configs/worlds_64.py --checkpoint=runs/worlds_64/export \
	  --beside --output=runs/worlds_64/eval --overwrite
	@echo "==> some worlds to walk through, into data/worlds"
	$(LVSM) synthetic data/worlds --train-scenes=1 --test-scenes=8
	@echo "==> what to do next"
	@echo "  look at both models' renders    runs/worlds_64/eval/index.html"
	@echo "    there \"model\" is what was trained here, \"shipped weights\" are those that come with lvsm_jax"
	@echo "  walk through a world            $(LVSM) view"
	@echo "  the same, what was trained      $(LVSM) view --weights=runs/worlds_64/export"
	@echo "  your own photographs            $(LVSM) render PHOTOS out"
	@echo "  all commands                    $(LVSM) --help"

demo-objects: $(INSTALLED)
	@echo "==> objects of worlds, into data/world_objects"
	$(LVSM) synthetic data/world_objects --rig=gso --train-scenes=128 --test-scenes=16
	@echo "==> training configs/object_64.py into runs/object_64"
	$(LVSM) train --config=configs/object_64.py --workdir=runs/object_64
	@echo "==> evaluating it on objects that were held out"
	$(LVSM) eval --config=configs/object_64.py --checkpoint=runs/object_64/export \
	  --output=runs/object_64/eval --overwrite

test: $(INSTALLED)
	@echo "==> tests that a change is likely to break"
	$(PYTEST) -m "not slow"

test-slow: $(INSTALLED)
	@echo "==> the slow tests"
	$(PYTEST) -m "slow and not long"

test-long: $(INSTALLED)
	@echo "==> the longest: real photographs, soaks, whole experiments"
	$(PYTEST) -m long

test-all: test test-slow

lint: $(INSTALLED)
	@echo "==> ruff"
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .

$(VENV)/.docs: $(INSTALLED)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	@touch $@

docs: $(VENV)/.docs
	@echo "==> the site, into site/"
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet
	@echo "==> look at site/index.html"

clean:
	rm -rf $(VENV) site *.egg-info .pytest_cache .ruff_cache
