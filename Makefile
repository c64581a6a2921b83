# `make` explains itself. Everything that is needed is installed by what needs it: Debian packages (as root), a
# virtual environment in .venv, and once the Kubernetes control plane of the lab, built from Go modules and cached
# in ~/.cache/cloudprovider. What touches the network runs in tests/lab/sandbox, which leaves nothing behind.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory
PYTHON := .venv/bin/python
SANDBOX := tests/lab/sandbox
export PYTHONPATH := $(CURDIR)

SERVICES ?= 1000
SCALE ?= 5000
ROUNDS ?= 13
MODES ?= nat,dsr
LOAD ?= 600
KEEP ?=
K3D ?=
VERSION := $(shell sed -n 's/^version = "\(.*\)"$$/\1/p' pyproject.toml)
IMAGE ?= cloudprovider:$(VERSION)
BASE_IMAGE ?=
PYTEST ?=

.PHONY: help setup controlplane demo demo-stop test ci pictures e2e-k3d lint types generate wheels image format bench bench-dataplane bench-health bench-hosts clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what the project needs (also done by whatever needs it)
	@tests/lab/setup

controlplane: setup ## build the lab's Kubernetes and Helm: a quarter of an hour once, then cached
	@$(PYTHON) -m tests.lab.build

demo: controlplane ## two clusters, Services with addresses, traffic, in half a minute; KEEP=1 leaves it running
	@$(PYTHON) -m tests.lab.demo $(if $(KEEP),--keep)

demo-stop: setup ## end a demo that runs
	@$(PYTHON) -m tests.lab.demo --stop

test: lint types controlplane ## everything but e2e-k3d; PYTEST="tests/core -k pools" for a part of the tests
	@$(if $(PYTEST),$(SANDBOX) $(PYTHON) -m pytest $(PYTEST),$(PYTHON) -m tests.lanes)

ci: lint types controlplane ## what .ci/run runs: test, then e2e/k3d where Docker answers; K3D=FOLDER of up, env and down
	@$(PYTHON) -m tests.ci $(if $(K3D),--k3d $(K3D))

pictures: controlplane ## make the README's pictures of the console anew, in docs/pictures
	@$(SANDBOX) $(PYTHON) -m pytest -q tests/console/pictures.py

e2e-k3d: wheels ## the scenarios on two k3d clusters, installed from manifests/; needs docker, k3d and kubectl
	@$(PYTHON) -m pytest -p no:cacheprovider --lane=k3d --durations=15 $(or $(PYTEST),e2e)

lint: setup ## format, lint and layers, checked
	@.venv/bin/ruff format --no-cache --check --quiet . || { echo "formatting differs: run 'make format'" >&2; exit 1; }
	@.venv/bin/ruff check --no-cache --quiet .
	@told=$$(.venv/bin/lint-imports --no-cache) || { echo "$$told" >&2; exit 1; }

types: setup ## mypy, strict
	@.venv/bin/mypy

generate: setup ## generated files: bridge messages, CustomResourceDefinitions, docs/reference, alerts, dashboard
	@$(PYTHON) proto/generate.py
	@$(PYTHON) manifests/monitoring/generate.py
	@$(PYTHON) -m cloudprovider.cli.main crds --write manifests/crds
	@$(PYTHON) docs/generate.py

wheels: setup ## the package and what it needs at run time as wheels, in build/wheels
	@$(PYTHON) manifests/image/wheels.py

image: wheels ## the container image IMAGE=cloudprovider:VERSION, by docker build; BASE_IMAGE=python:3.11-slim-bookworm
	@docker build --quiet --file manifests/image/Dockerfile --tag $(IMAGE) $(if $(BASE_IMAGE),--build-arg BASE_IMAGE=$(BASE_IMAGE)) \
		--build-arg VERSION=$(VERSION) --build-arg REVISION=$(shell git rev-parse HEAD 2>/dev/null || echo unknown) .

format: setup ## format the code, mend what can be mended
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .

bench: controlplane ## figures: tables here, JSON lines in build/bench.jsonl; SERVICES=1000 SCALE=5000 ROUNDS=13
	@status=0; \
	$(SANDBOX) $(PYTHON) -m tests.bench.services --services $(SERVICES) --scale $(SCALE) || status=1; \
	$(MAKE) bench-dataplane || status=1; \
	$(MAKE) bench-health || status=1; \
	$(MAKE) bench-hosts || status=1; \
	exit $$status

bench-dataplane: controlplane ## of them those of the data plane: ours, its peers and its limits on one network
	@$(PYTHON) -m tests.bench.dataplane.prepare
	@$(SANDBOX) $(PYTHON) -m tests.bench.dataplane --rounds $(ROUNDS) --modes $(MODES)

bench-health: setup ## of them those of health checks: their cost, their truth under load, a server's death; LOAD=600
	@$(SANDBOX) $(PYTHON) -m tests.bench.health --load-seconds $(LOAD)

bench-hosts: controlplane ## of them those of many hosts: a host's death and drain, beside keepalived with haproxy
	@$(PYTHON) -m tests.bench.dataplane.prepare
	@$(SANDBOX) $(PYTHON) -m tests.bench.hosts

clean: ## remove what was built or installed here (not the cached control plane)
	@rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
