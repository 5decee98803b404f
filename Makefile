# Everything a person does with this repository. `make` alone explains itself.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
WORKERS ?= 2
# What pip freeze cannot know: torch has other builds elsewhere, and no version of lingua has wheels for all Pythons.
PINS   := -e 's/^torch==([0-9.]+).*/torch==\1/' \
          -e 's/^(lingua-language-detector)==.*/\1==2.1.1; python_version < "3.14"\n\1==2.2.0; python_version >= "3.14"/'

export HF_HUB_DISABLE_TELEMETRY = 1
export MLFLOW_DISABLE_TELEMETRY = true
export DAGSTER_DISABLE_TELEMETRY = yes
export GX_ANALYTICS_ENABLED = False
export DO_NOT_TRACK = 1

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-gpu check format ui bench bench-gpu constraints clean

help: ## show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## create .venv and install everything that constraints.txt pins

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info < (3, 11) and sys.exit(sys.executable + " is Python " + sys.version.split()[0] \
	+ ", and 3.11 or newer is needed: add PYTHON=python3.13 to the command")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt pip setuptools
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP) ## run the whole factory on the built-in corpus (about ten minutes on 2 cores)
	$(BIN)/vipolyqwen demo

test: $(STAMP) ## run the tests (15 minutes at most on 2 cores; WORKERS=4 for more)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

test-slow: $(STAMP) ## run the tests that take minutes
	$(BIN)/python -m pytest -m slow

test-gpu: $(STAMP) ## run the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

check: $(STAMP) ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy vipolyqwen_core quality assets orchestration

format: $(STAMP) ## format the code and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

ui: $(STAMP) ## open Dagster and MLflow over the workspace; UI_FLAGS="--mlflow-port 5001": not on port 5000
	$(BIN)/vipolyqwen ui $(UI_FLAGS)

bench: $(STAMP) ## run the benchmarks; figures of the last run are in tests/benchmarks/RESULTS.md
	$(BIN)/python -m tests.benchmarks

bench-gpu: $(STAMP) ## measure training on one GPU, within 10 minutes; GPU_FLAGS=--smoke: a tiny model, anywhere
	$(BIN)/python -m tests.benchmarks.gpu --output .vipolyqwen/benchmarks $(GPU_FLAGS)

constraints: ## pin anew what is installed in .venv (after trying newer versions by hand)
	$(BIN)/python -m pip freeze --all --exclude-editable | sed -E $(PINS) > constraints.txt

clean: ## remove the workspace of the current folder (corpora, runs, registry, exports)
	rm -rf .vipolyqwen
