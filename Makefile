# Every command makes what it needs: a fresh machine wants Python 3.11+, a C compiler, and the package registries.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= out/demo

.PHONY: demo test slow check lint bench dev clean

demo: $(VENV)/.demo  ## animate a real photograph with the example clip
	$(BIN)/headwarp demo -o $(OUT)

test: $(VENV)/.test  ## the test suite, without the slow set
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

slow: $(VENV)/.test  ## the slow set: rebuilds assets, long runs
	$(BIN)/python -m pytest -q -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p headwarp

check: lint test  ## what continuous integration runs

bench: $(VENV)/.demo  ## kernels, fitting and animation, as ratios against a peer in the same run
	$(BIN)/headwarp bench raster
	$(BIN)/headwarp bench warp
	$(BIN)/headwarp bench animate

dev: $(VENV)/.dev  ## everything for working on the code, git hooks included
	$(BIN)/pre-commit install

clean:
	rm -rf $(VENV) .names build out *.egg-info

# One stamp per set of extras; a change of the pins or the project file installs again.
$(VENV)/.%: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$*]"
	@mkdir -p .names && ln -sfn .. .names/headwarp  # lets mypy see the root as the package `headwarp`
	@touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "headwarp needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) -V 2>&1); run: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
