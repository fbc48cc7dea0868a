# One verb per act. `make help` lists them; the two that matter are `make demo` and `make test`.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CLUSTER_VERB := $(PYTHON) -m deploy.dev.cluster
PROTOC := PATH="$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc --python_out=. --grpc_python_out=. --mypy_out=. --mypy_grpc_out=.

.PHONY: help setup tools proto lint format sbom audit test test-unit test-flow test-e2e test-faults soak bench lock demo cluster-up cluster-down cluster-status image images chart docs pictures clean

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.done ## the virtual environment, from the lock

$(VENV)/.done: requirements-dev.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

lock: setup ## pin what pyproject.toml asks for
	$(BIN)/uv pip compile -q pyproject.toml --extra otel --generate-hashes --no-emit-index-url --no-header --python-version 3.11 -o requirements.lock
	$(BIN)/uv pip compile -q pyproject.toml --extra dev --extra otel --generate-hashes --no-emit-index-url --no-header --python-version 3.11 -o requirements-dev.lock
	printf 'flask>=3.1\nflask-cors>=6\nmoto>=5.2\n' | $(BIN)/uv pip compile -q - --generate-hashes --no-emit-index-url --no-header --no-annotate --python-version 3.11 -o deploy/dev/cluster/builds/moto.lock

proto: setup ## generate the code of the contracts
	$(PROTOC) -Iagent/protocol/wire=proto/sealci/agent/v1 agent/protocol/wire/agent.proto
	$(PROTOC) -Iagent/scheduler/classic/wire=proto/sealci/classic $(addprefix agent/scheduler/classic/wire/,scheduler.proto actions.proto)
	$(PROTOC) -Iagent/pipeline/wire=proto/sealci/local/v1 agent/pipeline/wire/local.proto

lint: setup ## ruff, mypy, the import contracts and shellcheck
	$(BIN)/ruff check agent tests deploy
	$(BIN)/ruff format --check agent tests deploy
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/shellcheck agent/cluster/supervisor/*.sh

format: setup ## let ruff format and mend
	$(BIN)/ruff format agent tests deploy
	$(BIN)/ruff check --fix agent tests deploy

sbom: setup ## write the bill of materials of the agent's image (CycloneDX) to build/
	$(BIN)/python -m deploy.dev.supply

audit: setup ## look up known flaws of the locked dependencies (needs the advisories of PyPI)
	$(BIN)/pip-audit --strict --progress-spinner off --disable-pip --require-hashes --requirement requirements.lock

test-unit: setup ## pure functions and single parts
	$(BIN)/pytest tests/unit

test-flow: setup ## the agent against a real gRPC scheduler and a backend in memory
	$(BIN)/pytest tests/flow

test-e2e: setup cluster-up images tools ## everything on the real cluster (KUBERNETES_VERSION=1.34.4: on the oldest)
	$(BIN)/pytest -n 2 --dist loadfile -m "not alone" tests/e2e
	$(BIN)/pytest -m alone tests/e2e

test: lint cluster-up images tools ## all of it: lint, unit, flow, faults, e2e on a real cluster; then what needs that for itself
	$(BIN)/pytest -n 2 --dist loadfile -m "not alone" tests/unit tests/flow tests/faults tests/e2e
	$(BIN)/pytest -m alone tests/faults tests/e2e

test-faults: setup cluster-up images ## kill -9 at every step, broken streams, a long log
	$(BIN)/pytest -m "not soak" tests/faults

soak: setup cluster-up images ## a million log lines, and a thousand actions under faults of every kind (long)
	$(BIN)/pytest tests/faults -m soak -s

bench: setup cluster-up images ## how fast it is, against bare kubectl and a scripted API (BENCH=NAME: one part)
	$(BIN)/python -m tests.bench $(BENCH)

demo: ## install the chart on a real cluster, run a pipeline, scale, uninstall, check that nothing is left
	$(CLUSTER_VERB) prepare
	$(CLUSTER_VERB) up
	$(CLUSTER_VERB) demo-images
	$(BIN)/python -m deploy.demo

pictures: setup cluster-up images ## take the pictures of README and docs from real runs
	$(BIN)/python -m deploy.dev.pictures

chart: setup ## write the chart's files that are generated from the settings and the comments in values.yaml
	$(BIN)/python -m deploy.dev.chart

docs: setup ## write docs/settings.md and docs/metrics.md from the code
	$(BIN)/python -m deploy.dev.docs

cluster-up: ## start a real cluster; CLUSTER selects the kind of cluster (the first build takes about 10 minutes)
	$(CLUSTER_VERB) up

cluster-down: ## remove the cluster from this machine
	$(CLUSTER_VERB) down

cluster-status: ## print the state of the cluster's components
	$(CLUSTER_VERB) status

tools: ## install or build the other programs that tests need: helm, an object store, a token service, Prometheus, a registry, a browser
	$(CLUSTER_VERB) helm
	$(CLUSTER_VERB) versitygw
	$(CLUSTER_VERB) moto
	$(CLUSTER_VERB) prometheus
	$(CLUSTER_VERB) registry
	$(CLUSTER_VERB) browser

image: cluster-up ## build the agent's image and load it into the cluster
	$(CLUSTER_VERB) image

images: image ## build and load the images of the tests too
	$(CLUSTER_VERB) test-images

clean: cluster-down ## remove the cluster, the virtual environment and the caches of the tools
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache build *.egg-info
