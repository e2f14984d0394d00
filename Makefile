# make run    a simulated log, and AITM trained on it: runs/demo
# make test   the whole test suite
# make lint   ruff
# Each makes .venv first, if it is missing or older than pyproject.toml or the kernels' source.

PYTHON := $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: run test lint install

run: $(INSTALLED)
	$(BIN)/funnelrank simulate runs/demo-log
	$(BIN)/funnelrank train examples/demo.yaml

test: $(INSTALLED)
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt hatch_build.py $(wildcard csrc/*)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "funnelrank needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $(INSTALLED)
