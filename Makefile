# Two commands do everything: `make demo` shows it, `make test` proves it.
# Needs Linux x86_64, Python >= 3.11 and make; no root, no Docker, no variables.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# Tests wait for servers as much as they compute. Every worker has servers of its own: about a gigabyte of memory.
WORKERS := $(shell n=$$(nproc); echo $$((n < 3 ? 3 : n > 8 ? 8 : n)))
export DAGSTER_HOME := $(CURDIR)

.PHONY: help setup demo ui stop test lint bench clean

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make the environment (.venv/), with the command .venv/bin/scholaria-ops

$(STAMP): pyproject.toml constraints.txt
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; this is $$(python3 --version)" >&2; exit 1; }
	python3 -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup ## Real stores with sample data: backup, verify, offsite, rehearsal, evidence
	@exec $(PY) -m scholaria_ops.demo run

ui: setup ## The Dagster UI on 127.0.0.1:3000 with the demo's history; Ctrl-C ends it
	@exec $(PY) -m scholaria_ops.demo ui

stop: setup ## End everything that the demo started
	@exec $(PY) -m scholaria_ops.demo stop

lint: setup
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache

test: lint ## Lints, strict types and the whole suite on real servers
	$(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

bench: setup ## Measure time and memory against doing it by hand (30 minutes, 40 GB of disk; BENCH=--quick looks whether it works)
	@exec $(PY) -m benchmarks $(BENCH)

clean: stop ## Remove the environment, the demo and Dagster's history
	rm -rf $(VENV) .demo .dagster
