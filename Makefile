# Every target sets up .venv by itself where it needs one. Settings go through ARGS:
#   make train-tower ARGS="tower.quantizer.depth=2 training.steps=500"

.DEFAULT_GOAL := help
SHELL := bash

PYTHON ?= python3
EXPERIMENT ?= scenes
RUN ?= runs/demo
BENCH ?= *
ARGS ?=
PROCESSES ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
MEMBERS := packages/common packages/vision_tower packages/unified_lm
MEMBER_FILES := $(MEMBERS:%=%/pyproject.toml)
UV := $(BIN)/python -m uv
# A training in PROCESSES processes of this machine, one a GPU.
TRAIN = $(if $(PROCESSES),$(BIN)/python -m torch.distributed.run --standalone --nproc-per-node=$(PROCESSES) \
	--no-python) $(BIN)/vilau

# One sentence where Python is too old.
CHECK_PYTHON := import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit("%s is Python %d.%d, but vilau needs \
Python 3.11 or newer: run make setup PYTHON=python3.11, where no older .venv stands" % ((sys.executable,) + tuple(v)))

.PHONY: help setup demo smoke test lint format prepare train-clip train-tower evaluate-tower sweep tokenize train-lm \
	train-vila evaluate evaluate-public report bench requirements clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo '  ARGS="key=value ..." overrides settings, as in: make train-tower ARGS="training.steps=500"'

# --- set-up ----------------------------------------------------------------------------------------------------

setup: $(STAMP)  ## create .venv with everything pinned in requirements.txt (no-op where it stands)

# uv installs, since pip alone may resolve torch otherwise; pip only fetches uv. A Python without ensurepip (as
# Debian's without python3-venv) gets a bare venv, and its own pip puts uv there.
$(STAMP): requirements.txt $(MEMBER_FILES)
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not on PATH: install Python 3.11 or newer" >&2; exit 1; }
	@python=$(BIN)/python; test -x $$python || python=$(PYTHON); $$python -c '$(CHECK_PYTHON)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) >/dev/null || $(PYTHON) -m venv --clear --without-pip $(VENV)
	@$(UV) --version >/dev/null 2>&1 \
		|| $(BIN)/python -m pip install --quiet --disable-pip-version-check uv 2>/dev/null \
		|| $(PYTHON) -m pip --python $(BIN)/python install --quiet uv \
		|| { echo "uv could not be installed into $(VENV): $(PYTHON) needs pip, and pip a package registry" >&2; exit 1; }
	$(UV) pip install --python $(BIN)/python -r requirements.txt
	$(UV) pip install --quiet --python $(BIN)/python --no-deps $(MEMBERS:%=-e %)
	@touch $@

requirements: $(STAMP)  ## pin every dependency anew in requirements.txt (ARGS=--upgrade for the newest)
	$(UV) pip compile --quiet --universal --python-version 3.11 --all-extras $(MEMBER_FILES) --group dev \
		$(MEMBERS:packages/%=--no-emit-package vilau-%) --custom-compile-command "make requirements" \
		--annotation-style line --output-file requirements.txt $(ARGS)

# --- the whole line --------------------------------------------------------------------------------------------

demo: $(STAMP)  ## data, CLIP, tower, LM, evaluation, report: runs/demo (EXPERIMENT=scenes or easy_vqa)
	@$(BIN)/vilau demo experiment=$(EXPERIMENT) $(ARGS)

smoke: $(STAMP)  ## the whole line at toy size, in about a minute
	@$(BIN)/vilau demo experiment=smoke $(ARGS)

# --- one stage -------------------------------------------------------------------------------------------------

prepare: $(STAMP)  ## turn a source into shards under data/
	@$(BIN)/vilau prepare $(ARGS)

train-clip: $(STAMP)  ## train the CLIP stand-in
	@$(TRAIN) train-clip $(ARGS)

train-tower: $(STAMP)  ## train the vision tower (PROCESSES=8 for eight GPUs)
	@$(TRAIN) train-tower $(ARGS)

evaluate-tower: $(STAMP)  ## measure a tower on any pictures (ARGS="tower_directory=… data=…")
	@$(BIN)/vilau evaluate-tower $(ARGS)

sweep: $(STAMP)  ## towers over K and D, one by one or side by side: runs/sweep (ARGS="hydra/launcher=joblib")
	@$(BIN)/vilau sweep $(ARGS)

tokenize: $(STAMP)  ## turn a data set's pictures into codes, once
	@$(BIN)/vilau tokenize $(ARGS)

train-lm: $(STAMP)  ## train the unified LM on a tower's codes (PROCESSES=8 for eight GPUs; see docs/training.md)
	@$(TRAIN) train-lm $(ARGS)

train-vila: $(STAMP)  ## train VILA, the baseline on a CLIP's continuous features
	@$(TRAIN) train-vila $(ARGS)

evaluate: $(STAMP)  ## evaluate a run and write its results.json
	@$(BIN)/vilau evaluate $(ARGS)

evaluate-public: $(STAMP)  ## evaluate a run on public data sets (ARGS="directory=… pope.directory=…")
	@$(BIN)/vilau evaluate-public $(ARGS)

report: $(STAMP)  ## write a run's report/index.html (RUN=runs/demo)
	@$(BIN)/vilau report $(RUN)

bench: $(STAMP)  ## run benchmarks/*.py (BENCH=name for one)
	@for script in benchmarks/$(BENCH).py; do echo "$$script"; $(BIN)/python "$$script" $(ARGS) || exit; done

# --- checks ----------------------------------------------------------------------------------------------------

# pytest runs last, so that its closing line is the last one.
# A test keeps to one thread, and a file's tests to one process: they share what it builds.
test: lint  ## lint, then every test (ARGS="-k codes" for some)
	@$(BIN)/python -m pytest --numprocesses=auto --dist=loadfile $(ARGS)

lint: $(STAMP)  ## ruff, mypy, import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

format: $(STAMP)  ## rewrite the code in the one format, and mend what ruff can
	@$(BIN)/ruff check --fix --exit-zero .
	@$(BIN)/ruff format .

clean:  ## remove .venv and caches; data/ and runs/ stay
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find packages tests -name __pycache__ -type d -prune -exec rm -rf {} +
