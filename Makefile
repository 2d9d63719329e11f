# One command each. `make` alone lists them.
#
#   make run ARGS="--port-base 9080"     options of `ydht up`
#   make test ARGS="tests/unit -k ring"  options of pytest
#   make sim SEED=7                      the one run that a failure printed
#   make PYTHON=python3.12 …             a particular interpreter, for the first run
#   make stress-ids KEYS=10000000 KILLS=100
#   make test PROCESSES=0                one test at a time, in one process
#   make run COMPILE=no                  the sources as they are; for who changes them

SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
COMPILED := $(VENV)/.compiled
ARGS ?=
PROCESSES ?= 2
SEED ?=
SEEDS ?= 300
ROUNDS ?= 200
FAULT_SECONDS ?= 300
KILL_SECONDS ?= 60
TRAFFIC_SECONDS ?= 30
REPAIR_KEYS ?= 100000
FUZZ_REQUESTS ?= 200000
KEYS ?= 1000000
KILLS ?= 0
COMPILE ?= yes

# The first interpreter that is new enough; an explicit PYTHON is taken as it is. The system's own
# comes first: distributions build theirs with profile-guided optimisation, which those that were
# built by hand often lack, and which is worth 15 % of what a gateway can do, and more.
PYTHON ?= $(shell for p in /usr/bin/python3 python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	2>/dev/null && { echo $$p; break; }; done)

.PHONY: help
help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: $(COMPILED) ## Start the platform on this machine (Ctrl-C stops it)
	@$(BIN)/ydht up $(ARGS)

.PHONY: test
test: $(COMPILED) ## Run every test, sized for a shared two-core machine
	@$(BIN)/python -m pytest --numprocesses $(PROCESSES) --in-memory $(ARGS)

.PHONY: proof
proof: $(COMPILED) ## Run the tests at full size, then the figures (long)
	@HYPOTHESIS_PROFILE=proof ROUNDS=200 TRAFFIC_SECONDS=30 REPAIR_KEYS=100000 FUZZ_REQUESTS=200000 $(BIN)/python -m pytest --timeout 3600 $(ARGS)
	@$(BIN)/python -m tests.simulation --seeds 50000
	@$(BIN)/python -m bench.strace_replies
	@$(MAKE) --no-print-directory bench

.PHONY: kills
kills: $(COMPILED) ## Kill a node under load, ROUNDS=200 times, and look for lost writes
	@ROUNDS=$(ROUNDS) $(BIN)/python -m pytest -s --timeout 3600 tests/cluster/test_node_kills.py

.PHONY: faults
faults: $(COMPILED) ## Kill, pause and cut off real services under strong traffic, for 300 s
	@FAULT_SECONDS=$(FAULT_SECONDS) $(BIN)/python -m pytest -s --timeout 3600 tests/cluster/test_strong_faults.py

.PHONY: database-kills
database-kills: $(COMPILED) ## Kill PostgreSQL under a user manager at work, for 60 s
	@FAULT_SECONDS=$(KILL_SECONDS) $(BIN)/python -m pytest -s --timeout 3600 tests/cluster/test_database_kills.py

.PHONY: traffic
traffic: $(COMPILED) ## Kill and pause replicas and replicators under 64 customers, and load a gateway slowly, for 30 s
	@TRAFFIC_SECONDS=$(TRAFFIC_SECONDS) $(BIN)/python -m pytest -s --timeout 3600 tests/cluster/gateway_turmoil

.PHONY: repairs
repairs: $(COMPILED) ## Delete a fifth of 100,000 keys under faults, and miss 50,000 writes, and look for differences
	@REPAIR_KEYS=$(REPAIR_KEYS) $(BIN)/python -m pytest -s --timeout 3600 tests/cluster/test_collected.py tests/cluster/test_missed_writes.py

.PHONY: fuzz
fuzz: $(COMPILED) ## Send a gateway 200,000 requests that are none, or hardly
	@FUZZ_REQUESTS=$(FUZZ_REQUESTS) $(BIN)/python -m pytest -s --timeout 3600 tests/cluster/gateway_turmoil/test_malformed_requests.py

.PHONY: check
check: $(INSTALLED) ## Lint, formatting, types and house rules; changes nothing
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/tidy

.PHONY: format
format: $(INSTALLED) ## Format the code and mend what lint can mend
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

.PHONY: coverage
coverage: $(COMPILED) ## Run the tests and show which lines they miss
	@$(BIN)/coverage run -m pytest $(ARGS)
	@$(BIN)/coverage report --skip-covered --show-missing

.PHONY: migrate
migrate: $(INSTALLED) ## Bring the database to the newest schema
	@$(BIN)/ydht migrate $(ARGS)

.PHONY: schema
schema: $(INSTALLED) ## Write migrations/schema.sql anew, from the revisions
	@$(BIN)/python -m tests.integration.schema_file

.PHONY: sim
sim: $(COMPILED) ## Simulate: SEEDS=300 runs, or SEED=7 alone
	@$(BIN)/python -m tests.simulation $(if $(SEED),--seed $(SEED),--seeds $(SEEDS))

.PHONY: vendor
vendor: $(INSTALLED) ## Fetch the scripts that pages use anew, at the versions of web/vendor.toml
	@$(BIN)/python -m web.refresh_vendor

.PHONY: screenshots
screenshots: $(COMPILED) ## Take the pictures in docs/images anew, from demo data
	@$(BIN)/python -m tests.browser.screenshots

.PHONY: bench
bench: $(COMPILED) ## Measure, beside what each figure is compared with
	@$(BIN)/python -m bench $(ARGS)

.PHONY: stress
stress: $(COMPILED) ## Load it with millions of requests and sum up
	@$(BIN)/python -m bench.gateway_stress $(ARGS)

.PHONY: stress-ids
stress-ids: $(COMPILED) ## Collect KEYS=1000000 keys under KILLS=0 kills, and compare them
	@$(BIN)/python -m bench.stress_ids --keys $(KEYS) --kills $(KILLS) $(ARGS)

.PHONY: compile
compile: $(INSTALLED) ## Compile the hot modules anew; what runs them does so when one has changed
	@rm -f $(COMPILED)
	@$(BIN)/python compile.py
	@touch $(COMPILED)

.PHONY: pure
pure: $(INSTALLED) ## Run the sources as they are, until one of them has changed
	@$(BIN)/python compile.py --remove
	@touch $(COMPILED)

.PHONY: clean
clean: ## Remove what was installed and built here; data stays
	@! running=$$(pgrep -d ' ' -f '^$(CURDIR)/[.]venv/bin/python') || { echo "Still running from $(VENV): $$running. Stop it first; Ctrl-C in its terminal does." >&2; exit 1; }
	@rm -rf $(VENV) build dist *.egg-info *__mypyc.*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage htmlcov
	@find services tests bench migrations -name __pycache__ -type d -prune -exec rm -rf {} +
	@find services -name '*.so' -delete

# Made anew whenever the pinned versions change; the mark is set last, so a broken install is redone.
$(INSTALLED): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "ydht needs Python 3.11, 3.12 or 3.13, and none with its venv module was found as python3, python3.13, python3.12 or python3.11. Install one (on Debian and Ubuntu: apt-get install python3-venv), or say where it is: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c '' 2>/dev/null || { echo "$(PYTHON) is not a Python that runs here. Say where one is: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { echo "ydht needs Python 3.11, 3.12 or 3.13; $(PYTHON) is $$($(PYTHON) -V 2>&1). Say which to use: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) has no venv module. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "Installing into $(VENV) (once; a minute or two) ..."
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@PIP_CONSTRAINT=$(CURDIR)/requirements.lock PIP_BUILD_CONSTRAINT=$(CURDIR)/requirements.lock \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--config-settings editable_mode=compat -e '.[dev]'
	@touch $@

# Where nothing can be compiled the sources run as they are; the mark is set all the same.
ifeq ($(COMPILE),yes)
$(COMPILED): $(INSTALLED) compile.py $(shell sed -n 's/^    "\(services.*[.]py\)",$$/\1/p' compile.py)
	@echo "Compiling the hot modules (once; a minute) ..."
	@$(BIN)/python compile.py || true
	@touch $@
else
$(COMPILED): $(INSTALLED) FORCE
	@$(BIN)/python compile.py --remove
	@rm -f $@

FORCE:
endif
