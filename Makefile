# `make help` lists the targets. Nothing needs to be activated: the targets use the programs in .venv/bin.

SHELL := bash
.DEFAULT_GOAL := help
.PHONY: help setup cluster repro check pr-report docs test test-faults test-fast test-fuzz lint bench lock clean

# The value from `make NAME=value`. An environment variable of this name belongs to another program and does not count.
given = $(if $(filter command,$(origin $1)),$($1))

BIN := .venv/bin
INSTALLED := .venv/installed
RAY := .venv/cluster
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
FOUND = $(or $(call given,PYTHON),$(shell for python in python3 python3.13 python3.12 python3.11 python; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1 \
	&& echo $$python && break; done))
BASE ?= origin/main

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 19

setup: $(INSTALLED) ## make .venv with the pinned packages; PYTHON=path

# .venv/installed is written last, so an interrupted installation starts again. It is a copy of the requirements.lock
# that was installed: a switch of branches can give requirements.lock a new time although its content is the same.
$(INSTALLED): requirements.lock
	@if cmp -s $< $@; then touch $@; else $(MAKE) --no-print-directory install "PYTHON=$(call given,PYTHON)"; fi

.PHONY: install
install:
	@test -n "$(FOUND)" || { echo "error: regbench needs Python 3.11, 3.12 or 3.13; none is on the PATH"; exit 1; }
	@echo "Installing into .venv with $$($(FOUND) --version); about 2 GB, a few minutes"
	@rm -rf .venv
	@$(FOUND) -m venv .venv || { rm -rf .venv; echo "error: $(FOUND) can't make an environment; on Debian: apt install python3-venv"; exit 1; }
	@$(INSTALL) --require-hashes -r requirements.lock
	@$(INSTALL) --no-deps --no-build-isolation -e .
	@cp requirements.lock $(INSTALLED)

cluster: $(RAY) ## add Ray to .venv, for CLUSTER=… and its tests

$(RAY): $(INSTALLED) requirements-cluster.lock
	@$(INSTALL) --require-hashes -r requirements-cluster.lock
	@touch $@

repro: $(INSTALLED) $(if $(call given,CLUSTER),$(RAY)) ## train what is out of date; JOBS=n at a time, CLUSTER=address
	@$(BIN)/regbench repro $(if $(call given,JOBS),--jobs "$(JOBS)") $(if $(call given,CLUSTER),--cluster "$(CLUSTER)")

check: $(INSTALLED) ## fail unless the committed results are up to date
	@$(BIN)/regbench check

pr-report: $(INSTALLED) ## print what changed since BASE=origin/main, as Markdown
	@$(BIN)/regbench pr-report "$(BASE)" --images "$(IMAGES)"

docs: $(INSTALLED) ## fill the tables of README.md and docs/ from committed JSON
	@$(BIN)/regbench docs

test: $(INSTALLED) ## run the tests
	@$(BIN)/python -m pytest -m "not faults"

test-faults: $(INSTALLED) ## run the tests that kill, damage or fill up what a run needs
	@$(BIN)/python -m pytest -m faults

test-fast: $(INSTALLED) ## run the fast tests that need no Git, DVC or network
	@$(BIN)/python -m pytest -m "not slow and not dvc and not network"

test-fuzz: $(INSTALLED) ## run more of the tests with random input
	@$(BIN)/python -m pytest -m hypothesis --hypothesis-profile=many

lint: $(INSTALLED) ## check style, type hints and which part imports which
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports

bench: $(INSTALLED) ## measure speed and memory: over an hour, on an idle machine
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python benchmarks/bench.py

lock: ## update the lock files to the newest versions; needs uv
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --extra dev \
		--no-annotate --upgrade -o requirements.lock pyproject.toml
	@# Ray and its dependencies, with the versions in requirements.lock, so that both locks fit into one environment.
	sed -n 's/^cluster = \["\(.*\)"\].*/\1/p' pyproject.toml | uv pip compile --universal --python-version 3.11 \
		--generate-hashes --no-header --no-emit-index-url --no-annotate --upgrade --constraints requirements.lock \
		-o requirements-cluster.lock -

clean: ## remove .venv and scratch files; results and DVC's cache stay
	rm -rf .venv .regbench .pytest_cache .ruff_cache dvc_plots
