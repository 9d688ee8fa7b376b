# `make` alone prints the commands, from the comments beside them.
.DEFAULT_GOAL := help
.PHONY: help setup run test soak check clients format bench bench-scale proto requirements compose-test clean

# The first CPython there is from 3.11 on; PYTHON=... names another.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$python"; exit; }; done; echo python3.11)
BIN := .venv/bin
JOBS ?= auto

help: ## print the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: .venv/local ## serve on 127.0.0.1:50051 with an embedded PostgreSQL and a sample of backups
	@./backup-service dev

setup: .venv/local ## make the virtual environment, so that ./backup-service runs

test: .venv/development ## run the tests; those of the official clients after `make clients`
	$(BIN)/pytest -n $(JOBS) $(ARGS)

soak: .venv/development .venv/fuzzing ## the tests under faults in their long forms, and their figures to docs/faults.md
	$(BIN)/pytest --long --report docs/faults.md -m bar --timeout 7200 $(ARGS)

clients: ## install the official clients, for tests/clients (needs npm and go for two of them)
	@PYTHON=$(PYTHON) tests/clients/install

check: .venv/development ## formatting, lint, types, imports, contract, migrations, requirements (RELEASE=1: nothing may go unaudited)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	proto/check
	migrations/check
	$(BIN)/python requirements/check.py $(if $(RELEASE),--release)

format: .venv/development ## format, and mend what lint can mend
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: .venv/bench ## what a call costs, beside other ways of writing the service; eight minutes (ARGS=--help)
	$(BIN)/python -m bench $(ARGS)

bench-scale: .venv/bench ## the same calls over catalogs of ten thousand to ten million backups; half an hour, 20 GB
	$(BIN)/python -m bench --scale $(ARGS)

proto: .venv/development ## generate service/pb, docs/api.md and docs/openapi.json from proto/
	proto/generate

requirements: ## pin the requirements anew (needs uv; ARGS=--upgrade for newer ones)
	requirements/lock $(ARGS)

compose-test: .venv/development ## the checks of the deployment against docker-compose.yml, on the engine that DOCKER_HOST names
	$(BIN)/pytest -s tests/composed $(ARGS)

clean: ## remove the virtual environment, the official clients, and .data: the development database, and the catalogs of the benchmark
	rm -rf .venv .clients .data

# A stamp for each set of requirements; development includes local.
.venv/python:
	$(PYTHON) -m venv .venv
	@touch $@

.venv/local: requirements/local.txt | .venv/python
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/local.txt
	@touch $@

.venv/development: requirements/development.txt | .venv/python
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/development.txt
	@touch $@ .venv/local

.venv/bench: requirements/bench.txt | .venv/python
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bench.txt
	@touch $@ .venv/development .venv/local

.venv/fuzzing: requirements/fuzzing.txt | .venv/python
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/fuzzing.txt
	@touch $@
