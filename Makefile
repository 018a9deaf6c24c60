# make train: from nothing to a trained GPT.  make test: from nothing to a tested tree.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

NULL := $(or $(NULL_GPU_VENV),.venv-null)

.PHONY: setup train test coverage slow gpu-null slurm slurm-up slurm-status slurm-down lint types fmt bench clean help

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "error: Python 3.10 or newer is needed; name one: make PYTHON=python3.12 ..." >&2; exit 5; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); $(PYTHON) .ci/venv_without_ensurepip.py $(VENV); }

$(VENV)/.core: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing the core into $(VENV) (once; a minute, or as long as a PyTorch for your GPU takes to download)"
	@$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	@echo "installing the development tools into $(VENV) (once)"
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/.slow: $(VENV)/.dev
	@echo "installing lm-evaluation-harness into $(VENV) (once)"
	@$(PIP) install -c constraints.txt -e '.[dev,lm-eval]'
	@touch $@

setup: $(VENV)/.dev  ## create .venv with everything, for development

train: $(VENV)/.core  ## install the core, prepare the embedded data, train, show the result
	@$(BIN)/python train.py experiment=quickstart $(ARGS)

test: $(VENV)/.dev  ## install everything and run the default tests, several at once
	@$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

coverage: $(VENV)/.dev  ## run the default tests and show which lines they leave out; twice the time
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest -n auto --dist worksteal $(ARGS)
	@$(BIN)/coverage combine --quiet && $(BIN)/coverage report --show-missing --skip-covered

slow: $(VENV)/.slow  ## install lm-evaluation-harness too and run the slow tests, two at once
	@$(BIN)/python -m pytest -m slow -n 2 --dist worksteal $(ARGS)

# torch for CUDA comes from the package index, whatever pip is configured to prefer.
FROM_INDEX = PIP_FIND_LINKS= PIP_EXTRA_INDEX_URL= PIP_CONFIG_FILE=/dev/null
$(NULL)/.installed: pyproject.toml constraints.txt
	@echo "installing torch for CUDA into $(NULL) (once; 3 GB)"
	@$(PYTHON) -m venv $(NULL) || { rm -rf $(NULL); $(PYTHON) .ci/venv_without_ensurepip.py $(NULL); }
	@$(FROM_INDEX) $(NULL)/bin/python -m pip --disable-pip-version-check --quiet install -c constraints.txt \
	    -e '.[fp8,transformers]' hypothesis pytest pytest-timeout pytest-xdist
	@touch $@

$(NULL)/null_gpu/libcuda.so.1: $(NULL)/.installed $(wildcard tests/null_gpu/*.c tests/null_gpu/*.h) tests/null_gpu/build.py
	@$(NULL)/bin/python -m tests.null_gpu.build $(NULL)/null_gpu

# The other files of tests import packages that are not installed there.
NULL_TESTS = $(shell grep -rl 'mark.null_gpu' tests --include='test_*.py')

gpu-null: $(NULL)/null_gpu/libcuda.so.1  ## tests on a GPU whose kernels do nothing; downloads 3 GB, needs gcc
	@NULL_GPU_VENV=$(NULL) tests/null_gpu/run -m pytest -n 0 -m null_gpu $(or $(ARGS),$(NULL_TESTS))

slurm: $(VENV)/.dev  ## install Slurm too (Debian, Ubuntu; root) and run the tests that need a cluster
	@$(BIN)/python -m launch.slurm_sandbox.packages
	@$(BIN)/python -m pytest -m slurm $(ARGS)

slurm-up: $(VENV)/.core  ## start a throw-away Slurm on this machine, two nodes
	@$(BIN)/python -m launch.slurm_sandbox up

slurm-status: $(VENV)/.core  ## its nodes and jobs
	@$(BIN)/python -m launch.slurm_sandbox status

slurm-down: $(VENV)/.core  ## stop it; ARGS=--wipe removes its files too
	@$(BIN)/python -m launch.slurm_sandbox down $(ARGS)

lint: $(VENV)/.dev  ## check format and style
	@$(BIN)/ruff format --check . && $(BIN)/ruff check .

types: $(VENV)/.dev  ## check types, strictly in nanogpt/
	@$(BIN)/pyright

fmt: $(VENV)/.dev  ## format and fix what can be fixed
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

bench: $(VENV)/.core  ## measure step, batch loading and start-up, and print the table
	@$(BIN)/python bench.py experiment=shakespeare_char_cpu $(ARGS)

clean:  ## remove the virtual environment and caches; data/ and runs/ stay
	rm -rf $(VENV) .coverage* .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | awk -F'|' '{printf "  make %-12s %s\n", $$1, $$2}'
