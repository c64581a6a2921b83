# `make` explains itself. Everything that is needed is installed by what needs it: Debian packages (as root), a
# virtual environment in .venv, and once the Kubernetes control plane of the lab, built from Go modules and cached
# in ~/.cache/cloudprovider.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory
PYTHON := .venv/bin/python
SANDBOX := tests/lab/sandbox
export PYTHONPATH := $(CURDIR)

SERVICES ?= 1000
SCALE ?= 5000
KEEP ?=

.PHONY: help setup demo demo-stop test lint types generate format bench controlplane clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: .venv/ready ## install what the project needs (also done by whatever needs it)

.venv/ready: requirements-dev.txt tests/lab/setup
	@tests/lab/setup

controlplane: .venv/ready # build the lab's Kubernetes once; seconds when cached
	@$(PYTHON) -m tests.lab.build

demo: controlplane ## two clusters, Services with addresses, traffic; KEEP=1 leaves it running
	@KEEP=$(KEEP) $(PYTHON) -m tests.lab.demo

demo-stop: .venv/ready ## end a demo that was left running
	@$(PYTHON) -m tests.lab.demo --stop

test: lint types controlplane ## all that .ci/run runs: lint, types, layers, tests, scenarios
	@$(SANDBOX) $(PYTHON) -m pytest $(PYTEST)

lint: .venv/ready ## format, lint and layers, checked
	@.venv/bin/ruff format --check --quiet . || { echo "formatting differs: run 'make format'" >&2; exit 1; }
	@.venv/bin/ruff check --quiet .
	@.venv/bin/lint-imports --no-cache > build/layers.log || { cat build/layers.log >&2; exit 1; }

types: .venv/ready ## mypy, strict
	@.venv/bin/mypy

generate: .venv/ready ## generated files: bridge messages and CustomResourceDefinitions
	@$(PYTHON) proto/generate.py
	@$(PYTHON) -m cloudprovider.cli.main crds --out manifests/crds

format: .venv/ready ## format the code, mend what can be mended
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .

bench: controlplane ## figures: a table here, JSON lines in build/bench.jsonl; SERVICES=1000 SCALE=5000
	@$(SANDBOX) $(PYTHON) -m tests.bench.services --services $(SERVICES) --scale $(SCALE)

clean: ## remove what was built or installed here (not the cached control plane)
	@rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
