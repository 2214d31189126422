# Every target installs what it needs into .venv first, and again only when the packaging files change.
# Another interpreter: make PYTHON=python3.12 demo.   One test file: make test ARGS=tests/test_package.py

VENV := .venv
BIN := $(VENV)/bin
PACKAGING := setup.py pyproject.toml defended/_version.py
PYTHON ?=
ARGS ?=
TEST_WORKERS ?= 2

.PHONY: help demo test lint format types notebooks docs pages clean FORCE
.DEFAULT_GOAL := help

help:
	@echo "make demo    train, attack, export and audit a defended classifier offline, in about three minutes"
	@echo "make test    the test suite (DEFENDED_DATA and DEFENDED_REFERENCE name folders for the tests on real data)"
	@echo "make lint    ruff: rules and formatting          make format   apply them"
	@echo "make types   mypy on the installed package"
	@echo "make notebooks  execute the notebooks; an error in a cell is an error here"
	@echo "make docs    the documentation, strictly, into site/"
	@echo "make pages   run the code of the README and the documentation; make pages ARGS=tutorial runs one page"
	@echo "make clean   remove what the targets above made, .venv excepted"

demo: $(VENV)/.installed
	$(BIN)/defended demo $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder --durations 25 $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# mypy and mkdocstrings do not follow setup.py's mapping of attacks/ and serving/ below defended/, so they read a copy
# laid out as it is installed.
build/installed: FORCE | $(VENV)/.installed-dev
	rm -rf build
	$(BIN)/pip install -qq --no-deps --target build/installed .

types: build/installed
	cd build/installed && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p defended -p defended_cli -p defended_settings

notebooks: $(VENV)/.installed-dev
	$(BIN)/python notebooks/run.py --check

docs: build/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

pages: $(VENV)/.installed-dev
	$(BIN)/python docs/run_pages.py $(ARGS)

clean:
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis defended-demo
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +

$(VENV)/.installed: $(PACKAGING) | $(BIN)/python
	@echo "Installing into $(VENV); TensorFlow is large, so this takes some minutes ..."
	$(BIN)/pip install -qq -e .
	@touch $@

$(VENV)/.installed-dev: $(PACKAGING) | $(BIN)/python
	@echo "Installing into $(VENV), with the development tools; this takes some minutes ..."
	$(BIN)/pip install -qq -e ".[dev]"
	@touch $@ $(VENV)/.installed

# The first interpreter that runs, is new enough and can make a virtual environment with pip in it.
$(BIN)/python:
	@for candidate in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
	  if $$candidate -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    echo "Making $(VENV) with $$($$candidate --version)"; \
	    $$candidate -m venv $(VENV) && exit 0; \
	  fi; \
	done; \
	echo "No Python >= 3.11 with venv and ensurepip was found (on Debian and Ubuntu: apt install python3-venv)." >&2; \
	echo "Name one: make PYTHON=/path/to/python3 demo" >&2; \
	exit 1
