# make run    show the process table, by the fastest way that works here
# make test   all tests
# make lint   types and style
# make test-kernels   the tests that talk to the kernel, on other kernels in virtual machines
# make bench  measure beside ps, psutil and others: docs/benchmarks.md
#
# All of it happens in .venv, which is made on first use; PYTHON chooses the interpreter.

PYTHON ?= $(shell for name in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do \
	"$$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' \
	>/dev/null 2>&1 && { echo "$$name"; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: run test needs-kernels test-kernels bench lint clean

run: $(VENV)/.run
	$(BIN)/taskdiag ps aux

test: $(VENV)/.test
	$(BIN)/python -m pytest $(ARGS)

# What it needs is said before anything is fetched, Python packages included.
needs-kernels:
	@test -e $(VENV)/.test || test -z "$(PYTHON)" || "$(PYTHON)" -m kernels --needs

test-kernels: needs-kernels $(VENV)/.test
	$(BIN)/python -m kernels $(ARGS)

bench: $(VENV)/.test
	$(BIN)/python -m bench $(ARGS)

lint: $(VENV)/.lint
	$(BIN)/mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n "$(PYTHON)" || { \
		echo "make: no Python 3.10 or newer with venv was found; PYTHON=... names one" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml | $(BIN)/python
	$(PIP) install --editable .
	@touch $@

$(VENV)/.test: pyproject.toml | $(BIN)/python
	$(PIP) install --editable '.[test]'
	@touch $@ $(VENV)/.run

$(VENV)/.lint: pyproject.toml | $(BIN)/python
	$(PIP) install --editable '.[test,lint]'
	@touch $@ $(VENV)/.run $(VENV)/.test
