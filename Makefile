# Needs GNU make, git and Python 3.11 or later with venv and pip. `make` alone lists the targets.
# `make test VENV=.venv-new PYTHON=python3.13` works beside an environment of another Python.
VENV := .venv
BIN := $(VENV)/bin
# The first of these that is Python 3.11 or later makes the environment; `make setup PYTHON=python3.12` chooses one.
PYTHONS := $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python)

.DEFAULT_GOAL := help
.PHONY: help setup lint style types imports build quick test demo bench model bazel clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' Makefile

setup: $(VENV)/.installed ## make .venv and install the package and its test tools
	@echo "setup: $(VENV) is ready ($$($(BIN)/python --version))"

# The stamp makes the second run instant; a change of dependencies makes it stale. PIP_OPTIONS goes to pip.
$(VENV)/.installed: pyproject.toml
	@set -e; \
	if ! $(BIN)/python -c '' 2>/dev/null; then \
		found=; \
		for python in $(PYTHONS); do \
			if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
			then found=$$python; break; fi; \
		done; \
		if [ -z "$$found" ]; then \
			echo "setup: none of '$(PYTHONS)' is Python 3.11 or later with venv and pip;" \
				"install one, or name it: make setup PYTHON=/path/to/python" >&2; \
			exit 1; \
		fi; \
		echo "setup: creating $(VENV) with $$found ($$($$found --version))"; \
		$$found -m venv --clear $(VENV); \
	fi
	@echo "setup: installing medha-jax and its test tools into $(VENV) (the first time takes minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) -e '.[test]'
	@touch $@

lint: $(VENV)/.installed ## style, types, imports against imports.bzl
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target types style imports build

style:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types:
	$(BIN)/mypy

imports:
	$(BIN)/lint-imports

build:
	$(BIN)/python tools/check_build.py

# What no devices are needed for, the sampler, the loop, one golden model and one layout over all three axes.
QUICK := tests/test_*.py $(addprefix tests/,kv specs scheduler text workload results client models mesh inspection tools) \
	$(addprefix tests/attention/test_,xla.py pool.py) $(addprefix tests/runtime/test_,packing.py sampler.py) \
	$(addprefix tests/engine/test_,service.py release.py output.py offline.py) \
	$(addprefix tests/server/test_,server.py streams.py) $(addprefix tests/cli/test_,option_groups.py refusals.py) \
	'tests/reference/test_golden.py::test_same_tokens_and_logits_as_transformers[llama-default]' \
	'tests/runtime/test_exactness.py::test_every_layout_gives_what_one_device_gives[2-2-2]'

quick: setup style imports build ## style, imports and the tests that matter most, in less than two minutes
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal $(QUICK)

test: setup lint ## setup, lint, then every test
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal

demo: setup ## serve the bundled tiny model, stream from it; show a long prompt with short ones behind it
	$(BIN)/python -m tools.demo

bench: setup ## measure attention, the model, a lone prompt, the server and the load generator on this machine
	$(BIN)/python -m benchmarks.attention
	$(BIN)/python -m benchmarks.model
	$(BIN)/python -m benchmarks.lone_prompt
	$(BIN)/python -m benchmarks.server
	$(BIN)/python -m benchmarks.client

model: setup ## train the bundled tiny model again
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train]'
	$(BIN)/python tools/train_tiny.py

# Only the libraries are built: 4.2.3 downloads a C++ toolchain before it builds a py_binary or py_test.
# --batch leaves no server behind; --symlink_prefix=/ keeps bazel's links to whole source trees out of here.
bazel: ## check and build the Bazel targets, where bazel is installed
	@if command -v bazel >/dev/null 2>&1; then \
		set -ex; \
		bazel --batch query //...; \
		bazel --batch query 'kind(py_library, //...)' | xargs bazel --batch build --symlink_prefix=/; \
	else \
		echo "bazel: not installed, nothing done (on Debian: apt-get install bazel-bootstrap)"; \
	fi

clean: ## remove everything that these targets made
	rm -rf .venv .venv-* build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
