# `make help` lists the targets. Nothing needs to be activated: .venv's programs come first.

SHELL := bash
.DEFAULT_GOAL := help
.PHONY: help setup cluster repro test check pr-report bench lint lock clean

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONPATH := src
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1 \
	&& echo $$python && break; done)
INSTALLED := .venv/installed
RAY := .venv/cluster
BASE ?= origin/main

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 16

setup: $(INSTALLED) ## make .venv with the pinned packages

# The mark is written last, so a half-done installation is begun again.
$(INSTALLED): requirements.lock
	@test -n "$(PYTHON)" || { echo "error: regbench needs Python 3.11, 3.12 or 3.13; none is on the PATH"; exit 1; }
	@echo "Installing into .venv with $$($(PYTHON) --version); about 2 GB, a few minutes"
	@rm -rf .venv
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "error: $(PYTHON) can't make an environment; on Debian: apt install python3-venv"; exit 1; }
	@python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@touch $@

cluster: $(RAY) ## add Ray to .venv, for CLUSTER=… and its tests

$(RAY): $(INSTALLED) requirements-cluster.lock
	@python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-cluster.lock
	@touch $@

repro: $(INSTALLED) $(if $(CLUSTER),$(RAY)) ## run what is out of date, JOBS=n runs side by side or on CLUSTER=address, and show the table
	@if python -m dvc status --quiet; then echo "Everything is up to date."; \
	elif [ -n "$(CLUSTER)" ]; then python -m regbench.cluster "$(CLUSTER)"; \
	else bash stages/side_by_side.sh; fi
	@python -m regbench.summary

test: $(INSTALLED) ## run the tests
	@python -m pytest

check: $(INSTALLED) ## fail unless the committed results are those of params.yaml and the code
	@python -m regbench.review check

pr-report: $(INSTALLED) ## print what changed since BASE=origin/main, as Markdown
	@python -m regbench.review report "$(BASE)" --images "$(IMAGES)"

bench: $(INSTALLED) ## measure speed and memory beside the article's way; half an hour, on an idle machine
	@python benchmarks/bench.py

lint: $(INSTALLED) ## check style
	@ruff check . && ruff format --check .

lock: ## pin the newest allowed packages in requirements.lock and what Ray adds in requirements-cluster.lock; needs uv
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --extra dev \
		--no-annotate --upgrade -o requirements.lock pyproject.toml
	@# Ray and what it needs, at the versions of the other lock, so that both can be installed one after the other.
	sed -n 's/^cluster = \["\(.*\)"\].*/\1/p' pyproject.toml | uv pip compile --universal --python-version 3.11 \
		--generate-hashes --no-header --no-emit-index-url --no-annotate --upgrade --constraints requirements.lock \
		-o requirements-cluster.lock -

clean: ## remove the environment and scratch files; results and DVC's cache stay
	rm -rf .venv .regbench .pytest_cache .ruff_cache dvc_plots
