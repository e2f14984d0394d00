# make run    a simulated log, and AITM trained on it: runs/demo
# make test   the whole test suite
# make test-peers  our layers and models beside torch-rechub's and FuxiCTR's, under the same weights, in .bench-env
# make test-distributed  several processes train as one does: sharded tables on torchrec; train counted by Spark (Java 17).
#             In .distributed-env; LOGS=FOLDER counts the public logs, too
# make chaos  kills short runs at 100 random moments, and counts how many end bitwise equal; then damaged and hostile
#             files by the thousand: the right result or one sentence
# make chaos-serve  a server under hostile bodies, reloads, kills and a steady load; about half an hour. Requests drawn from
#             its OpenAPI document, too, with SCHEMATHESIS=PROGRAM
# make soak   the suite's steady load on a server for SOAK=120 seconds, instead of four
# make grid   every part of a model with every other, the whole cross product: each works or is refused with a sentence
# make lint   ruff
# make bench  speed against peers and the machine, about an hour; bench-quick: under ten minutes. Peers live in .bench-env
# make costs  parameters, multiply-adds and rows per CPU second of every model, into docs/models; about five minutes
# make contest LOGS=FOLDER   every model on the public logs, beside LightGBM and torch-rechub: docs/quality.md; hours, goes on
# make fuzz   texts, configs of other systems and rows nobody has seen (SECONDS=600)
# Each makes .venv first, if it is missing or older than pyproject.toml or the kernels' source.

PYTHON := $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/installed
PEERS := .bench-env/installed

.PHONY: run test test-peers test-distributed chaos chaos-serve soak grid costs fuzz lint install bench bench-quick contest

run: $(INSTALLED)
	$(BIN)/funnelrank simulate runs/demo-log
	$(BIN)/funnelrank train examples/demo.yaml

test: $(INSTALLED)
	$(BIN)/python -m pytest

test-peers: .bench-env/tests
	.bench-env/bin/python -m pytest -o addopts="" -q -rs tests/peers

test-distributed: .distributed-env/installed
	.distributed-env/bin/python -m pytest -o addopts="" -q -rs tests/ranks
	FUNNELRANK_DATA=$(or $(LOGS),$(FUNNELRANK_DATA)) .distributed-env/bin/python -m pytest -o addopts="" -q -rs tests/data/test_statistics.py

chaos: $(INSTALLED)
	$(BIN)/python benchmarks/chaos.py
	$(BIN)/python benchmarks/chaos_files.py

chaos-serve: $(INSTALLED)
	$(BIN)/python benchmarks/chaos_serve.py $(if $(SCHEMATHESIS),--schemathesis $(SCHEMATHESIS))

SOAK := 120
soak: $(INSTALLED)
	FUNNELRANK_SOAK=$(SOAK) $(BIN)/python -m pytest -o addopts="" -q tests/serve/test_served.py -k steady_load

grid: $(INSTALLED)
	$(BIN)/python tests/models/grid.py

lint: $(INSTALLED)
	$(BIN)/ruff check .

bench: $(INSTALLED) $(PEERS)
	$(BIN)/python benchmarks/bench.py

bench-quick: $(INSTALLED) $(PEERS)
	$(BIN)/python benchmarks/bench.py --quick

contest: $(INSTALLED) $(PEERS)
	$(BIN)/python benchmarks/contest.py $(LOGS)

SECONDS := 600
fuzz: $(INSTALLED)
	$(BIN)/python benchmarks/fuzz.py --seconds $(SECONDS)

costs: $(INSTALLED)
	$(BIN)/python benchmarks/costs.py --write

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt hatch_build.py $(wildcard csrc/*)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "funnelrank needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $(INSTALLED)

$(PEERS): benchmarks/peers/requirements.txt constraints.txt
	test -x .bench-env/bin/python || $(PYTHON) -m venv .bench-env
	.bench-env/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r benchmarks/peers/requirements.txt
	touch $(PEERS)

.bench-env/tests: $(PEERS) pyproject.toml
	.bench-env/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt pytest hypothesis -e .
	touch .bench-env/tests

.distributed-env/installed: requirements-distributed.txt constraints.txt pyproject.toml
	test -x .distributed-env/bin/python || $(PYTHON) -m venv .distributed-env
	.distributed-env/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt pytest hypothesis -e '.[scale,spark]'
	.distributed-env/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-distributed.txt
	touch .distributed-env/installed
