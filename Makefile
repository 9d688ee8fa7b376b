# `make` alone prints the commands from the ## comments.
.DEFAULT_GOAL := help
.PHONY: help setup run test coverage soak screenshots check clients format bench bench-scale bench-instructions wheel proto requirements compose-test debian-test debian-install-test clean

# The first CPython of the PATH that is 3.11 or newer; PYTHON=... selects another.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$python"; exit; }; done; echo python3.11)
# VENV=... selects another virtual environment, for tests on a second CPython; ./backup-service always runs in .venv.
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= auto
# The benchmark has its own virtual environment, of the first optimized CPython of this list, or else of PYTHON. Debian's and the official
# image's are optimized, pyenv's is not. BENCH_PYTHON=... selects another.
BENCH_PYTHON ?= $(shell for python in python3.14 python3.13 python3.12 python3.11 /usr/local/bin/python3 /usr/bin/python3; do \
	"$$python" bench/interpreter.py 2>/dev/null && exit; done; echo $(PYTHON))
on-optimized-python = @python=$(BENCH_PYTHON) && venv=.data/bench/venv$$(echo "$$python" | tr / -) && \
	$(MAKE) --no-print-directory PYTHON="$$python" VENV="$$venv" "$$venv/development" && "$$venv/bin/python" $(1) $(ARGS)
INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check --require-hashes

help: ## print the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/local ## serve on 127.0.0.1:50051 with an embedded PostgreSQL and a sample of backups
	@./backup-service dev

setup: $(VENV)/local ## create the virtual environment that ./backup-service runs in

test: $(VENV)/development ## run the tests (ARGS=... of pytest); the official clients' tests need `make clients`
	$(BIN)/pytest -n $(JOBS) --dist worksteal $(ARGS)

coverage: $(VENV)/development ## run the tests, measure the branch coverage of service/ and fail if it is below the minimum of pyproject.toml
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n $(JOBS) --dist worksteal $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

soak: $(VENV)/measurements ## run the long forms of the fault tests and write the measurements to docs/faults.md
	$(BIN)/pytest --long --report docs/faults.md -m guarantee --timeout 7200 $(ARGS)

screenshots: $(VENV)/development ## write the screenshots of the report, in docs/ (needs Debian's chromium-headless-shell)
	$(BIN)/python -m tests.support.report_screenshots

clients: ## install the official clients, for tests/clients, and axe-core (needs npm and go)
	@PYTHON=$(PYTHON) tests/clients/install

check: $(VENV)/development ## check formatting, lint, spelling, types, imports, contract, migrations and requirements (RELEASE=1: fail if the audit cannot run)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/typos
	$(BIN)/mypy
	$(BIN)/lint-imports
	proto/check
	migrations/check
	$(BIN)/python -m requirements.check $(if $(RELEASE),--release)

format: $(VENV)/development ## format the code and apply lint fixes
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: ## compare with other implementations, and write README, docs/performance.md and the plot; ten minutes (ARGS=--help)
	$(call on-optimized-python,-m bench)

bench-scale: ## measure catalogs of ten thousand and ten million backups, and write the same documents; fifteen minutes, 15 GB
	$(call on-optimized-python,-m bench scale)

bench-instructions: ## count the instructions of each call, and write the same documents; needs valgrind
	$(call on-optimized-python,-m bench instructions)

wheel: $(VENV)/development ## build the wheel, in dist/
	$(BIN)/hatchling build --target wheel

proto: $(VENV)/development ## generate service/pb, docs/api.md and docs/openapi.json from proto/
	proto/generate

requirements: $(VENV)/development ## pin the requirements again (ARGS=--upgrade for newer versions)
	PATH="$(CURDIR)/$(BIN):$$PATH" requirements/lock $(ARGS)

compose-test: $(VENV)/development ## run the deployment's tests against docker-compose.yml, on the Docker engine of DOCKER_HOST
	$(BIN)/pytest -s tests/composed $(ARGS)

debian-test: ## run `make run` and `make test` in a bare Debian container (DEBIAN_IMAGE=..., DEBIAN_OPTIONS=... of docker run)
	.ci/debian-test

debian-install-test: wheel ## install the wheel with pipx in a bare Debian container as gpadmin, and list the sample behind a dead proxy
	.ci/debian-install-test

clean: ## remove the virtual environments, the official clients, the development database and the benchmark's catalogs
	rm -rf .venv .venv-3.* .clients .data dist

# One stamp file for each set of requirements; development includes local.
$(VENV)/python:
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/local: requirements/local.txt | $(VENV)/python
	$(INSTALL) -r requirements/local.txt
	@touch $@

$(VENV)/development: requirements/development.txt | $(VENV)/python
	$(INSTALL) -r requirements/development.txt
	@touch $@ $(VENV)/local

$(VENV)/measurements: requirements/measurements.txt | $(VENV)/development
	$(INSTALL) -r requirements/measurements.txt
	@touch $@
