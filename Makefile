# `make` or `make help` lists the targets. Needs Python 3.11 or newer; everything else it installs itself.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
PIP_INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
GRPCURL_VERSION := v1.9.3
VERSITYGW_VERSION := v1.8.0
# Workers of the tests; two cores are what CI has.
JOBS ?= 2
# Cases of each property in `make fuzz`.
CASES ?= 5000
# Further arguments: make test ARGS='tests/unit -k slugid', make run ARGS=--help
ARGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  \033[1m%-12s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- Use it

.PHONY: run
run: $(VENV)/.run ## Start the queue with its own Postgres in ./data: gRPC on :50051, HTTP on :8080
	@exec $(BIN)/tcqueue serve $(ARGS)

.PHONY: demo
demo: $(VENV)/.dev ## See the main job end to end, on this repository's own build, in about a minute
	@exec $(BIN)/tcqueue demo $(ARGS)

# --- Work on it

.PHONY: test
test: $(VENV)/.dev tools ## Run the tests, with all services they need
	$(BIN)/pytest -n $(JOBS) --dist=worksteal --durations=15 $(ARGS)

.PHONY: fuzz
fuzz: $(VENV)/.dev ## Run thousands of requests that nobody would think of (minutes; CASES=5000)
	TCQUEUE_TEST_FUZZ_CASES=$(CASES) $(BIN)/pytest tests/fuzz tests/unit/test_hawk.py --timeout 3600 $(ARGS)

.PHONY: lint
lint: lint-python lint-imports lint-sql lint-proto lint-readme check-gen ## Check everything that can be checked without running it

.PHONY: lint-python
lint-python: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: lint-imports
lint-imports: $(VENV)/.dev
	$(BIN)/lint-imports

.PHONY: lint-sql
lint-sql: $(VENV)/.dev
	$(PY) -m tools.lint_sql

.PHONY: lint-proto
lint-proto: $(VENV)/.dev
	$(PY) -m tools.lint_proto

.PHONY: lint-readme
lint-readme: $(VENV)/.dev
	$(PY) -m tools.readme --check

.PHONY: format
format: $(VENV)/.dev ## Format Python and protos, and fix what ruff can fix
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format .
	$(PY) -m tools.lint_proto --format

.PHONY: gen
gen: $(VENV)/.dev ## Write gen/ anew from proto/, and the settings table of the README
	$(PY) -m tools.gen
	$(PY) -m tools.readme

.PHONY: check-gen
check-gen: $(VENV)/.dev ## Prove that gen/ is what proto/ gives
	$(PY) -m tools.gen --check

.PHONY: bench
bench: $(VENV)/.dev ## Measure speed and memory (15 minutes); writes bench/latest.json
	$(PY) -m bench $(ARGS)

.PHONY: bench-quick
bench-quick: $(VENV)/.dev ## The same within two minutes, without artifacts and the relay
	$(PY) -m bench --quick $(ARGS)

.PHONY: lock
lock: $(VENV)/.dev ## Write constraints.txt: the versions of what our dependencies depend on
	$(PY) -m tools.lock

.PHONY: tools
tools: .tools/grpcurl .tools/versitygw .tools/clients/.made .tools/node/.made .tools/node-2014/.made .tools/azurite/.made ## Install into .tools/ what the tests use of others: clients, stores (what needs Go or Node is left out without them, except in CI)

.PHONY: clean
clean: ## Remove what was built; ./data stays
	rm -rf $(VENV) .staging .tools build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './data/*' -prune -exec rm -rf {} +

# --- What those stand on

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; $(PYTHON) is not. Name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "building $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml constraints.txt | $(PY)
	@echo "installing what the service needs"
	@$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(PY)
	@echo "installing what development needs"
	@$(PIP_INSTALL) --editable '.[dev]'
	@touch $(VENV)/.run $@

# A real client of another language. The folder is made even without Go, so that tests can tell.
.tools/grpcurl:
	@mkdir -p .tools
	@if command -v go >/dev/null; then \
	  echo "installing grpcurl $(GRPCURL_VERSION)"; \
	  GOBIN=$(CURDIR)/.tools go install github.com/fullstorydev/grpcurl/cmd/grpcurl@$(GRPCURL_VERSION); \
	elif [ "$(CI)" = true ]; then \
	  echo "no go: grpcurl cannot be installed, and CI needs it" >&2; exit 1; \
	else \
	  echo "no go: the tests that use grpcurl will be skipped"; \
	fi

# A real S3 server, in one file.
.tools/versitygw:
	@mkdir -p .tools
	@if command -v go >/dev/null; then \
	  echo "installing versitygw $(VERSITYGW_VERSION) (a minute)"; \
	  GOBIN=$(CURDIR)/.tools go install github.com/versity/versitygw/cmd/versitygw@$(VERSITYGW_VERSION); \
	elif [ "$(CI)" = true ]; then \
	  echo "no go: versitygw cannot be installed, and CI needs it" >&2; exit 1; \
	else \
	  echo "no go: the tests that use versitygw will be skipped"; \
	fi

# Today's clients, in an environment of their own: they pin what they depend on.
.tools/clients/.made: tests/clients/requirements.txt
	@echo "installing the Python clients"
	@$(PYTHON) -m venv .tools/clients
	@.tools/clients/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

.tools/node/.made: tests/clients/package.json
	@mkdir -p .tools/node
	@if command -v npm >/dev/null; then \
	  echo "installing the Node client"; \
	  cp $< .tools/node/ && cd .tools/node && npm install --no-package-lock --no-audit --no-fund --silent; \
	elif [ "$(CI)" = true ]; then \
	  echo "no npm: the Node client cannot be installed, and CI needs it" >&2; exit 1; \
	else \
	  echo "no npm: the tests that use the Node client will be skipped"; \
	fi
	@touch $@

# The client of that time whose reference is the one that the API of 2014 is held to.
.tools/node-2014/.made: tests/clients/of_2014/package.json
	@mkdir -p .tools/node-2014
	@if command -v npm >/dev/null; then \
	  echo "installing the Node client of 2014"; \
	  cp $< .tools/node-2014/ && cd .tools/node-2014 && npm install --no-package-lock --no-audit --no-fund --silent; \
	elif [ "$(CI)" = true ]; then \
	  echo "no npm: the Node client of 2014 cannot be installed, and CI needs it" >&2; exit 1; \
	else \
	  echo "no npm: the tests that use the Node client of 2014 will be skipped"; \
	fi
	@touch $@

# Azure's own emulator of its blob store.
.tools/azurite/.made: tests/plugins/azurite.json
	@mkdir -p .tools/azurite
	@if command -v npm >/dev/null; then \
	  echo "installing azurite"; \
	  cp $< .tools/azurite/package.json && cd .tools/azurite && npm install --no-package-lock --no-audit --no-fund --silent; \
	elif [ "$(CI)" = true ]; then \
	  echo "no npm: azurite cannot be installed, and CI needs it" >&2; exit 1; \
	else \
	  echo "no npm: the tests that use azurite will be skipped"; \
	fi
	@touch $@
