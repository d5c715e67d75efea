# Everything from nothing: `make demo`, `make test` and `make check` set up what they need.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
export PATH := $(BIN):$(PATH)
# One thread per process: trials run side by side, and threads that share cores lose many times over.
export OMP_NUM_THREADS ?= 1
TESTS_AT_ONCE ?= 2

.PHONY: demo test check lint clean
demo: $(VENV)/installed
	HF_HUB_OFFLINE=1 snakemake
	HF_HUB_OFFLINE=1 harness recommend --task my_task --score-base

test: $(VENV)/installed
	HF_HUB_OFFLINE=1 pytest --numprocesses $(TESTS_AT_ONCE)

lint: $(VENV)/installed
	ruff format --check .
	ruff check .
	mypy

check: lint test

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .snakemake
