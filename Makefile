# make demo   compile, verify and benchmark the example network
# make test   run the tests
# make lint   ruff and mypy
#
# Each target sets up .venv by itself. PYTHON=... chooses the interpreter (3.11 or newer),
# VENV=... the folder, PYTEST_ARGS=... what pytest gets.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || echo python3)
VENV ?= .venv
PYTEST_ARGS ?= -n 2
BIN := $(VENV)/bin

.PHONY: demo test lint venv system clean

demo: venv system
	$(BIN)/python examples/digits/demo.py

test: venv system
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check -q .
	PYTHON=$(abspath $(BIN)/python) tools/typecheck.sh

venv: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "effc needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "Python's venv module is missing (Debian: apt-get install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[dev]'
	touch $@

system:
	@tools/install-system-packages.sh

clean:
	rm -rf $(VENV) build out
