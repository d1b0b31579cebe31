# `make serve` starts the server, `make test` runs the tests. Both make the environment they need.

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= python3
ARGS ?=
# Test processes at once; a test file stays in one of them.
WORKERS ?= 2

VENV := .venv
PIP := $(VENV)/bin/python -m pip install --disable-pip-version-check -c constraints.txt
PROGRESS := grep --line-buffered -E '^(Collecting|Downloading|Building|Installing|Successfully)|ERROR|error:'
SETUP := pyproject.toml constraints.txt
PACKAGES := $(shell git ls-files -co --exclude-standard -- '*.py' 'default_model/checkpoint/*' 'storage/migrations/*' 2>/dev/null)

.PHONY: serve test clients torture fuzz bench lint types coverage clean

serve: $(VENV)/installed
	@$(VENV)/bin/idefics-chat serve $(ARGS)

test: $(VENV)/installed-clients lint types
	@OMP_NUM_THREADS=1 $(VENV)/bin/python -m coverage erase
	@OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --cov --cov-report=term -n $(WORKERS) --dist loadfile

clients: $(VENV)/installed-clients
	@OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest tests/clients

torture: $(VENV)/installed-test
	@$(VENV)/bin/python -m tests.torture $(or $(ARGS),--kills 1000)

fuzz: $(VENV)/installed-test
	@OMP_NUM_THREADS=1 $(VENV)/bin/python -m tests.fuzz $(or $(ARGS),--inputs 20000 --seed 1)

bench: $(VENV)/installed-bench
	@for file in memory storage engine_decode engine_turns engine_thread engine_serve tasks; do \
		echo "== $$file"; OMP_NUM_THREADS=1 $(VENV)/bin/python benchmarks/$$file.py || exit 1; done

lint: $(VENV)/installed-test
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .

types: $(VENV)/installed-test
	@$(VENV)/bin/mypy

$(VENV)/bin/python:
	@echo "Making the environment $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)

# Installed as a wheel, as users have it; again whenever a packaged file changes.
$(VENV)/installed: $(VENV)/bin/python $(SETUP) $(PACKAGES)
	@echo "Installing idefics-chat and what it needs (a few minutes the first time) ..."
	@rm -rf build *.egg-info
	@$(PIP) . | $(PROGRESS)
	@rm -rf build *.egg-info
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	@echo "Installing what the tests need ..."
	@$(PIP) '.[test,lint]' | $(PROGRESS)
	@rm -rf build *.egg-info
	@touch $@

$(VENV)/installed-clients: $(VENV)/installed-test tests/clients/js/package-lock.json
	@echo "Installing the clients ..."
	@$(PIP) '.[clients]' | $(PROGRESS)
	@cd tests/clients/js && PATH="$(CURDIR)/$(VENV)/bin:$$PATH" npm ci --no-audit --no-fund --ignore-scripts --loglevel=error
	@rm -rf build *.egg-info
	@touch $@

$(VENV)/installed-bench: $(VENV)/installed-test
	@echo "Installing what the benchmarks compare with ..."
	@$(PIP) '.[bench]' | $(PROGRESS)
	@rm -rf build *.egg-info
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .coverage* .pytest_cache .mypy_cache .ruff_cache .hypothesis
