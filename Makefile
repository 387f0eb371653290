# Everything here needs Python >= 3.11 and make; the rest is set up in .venv on first use.
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Another interpreter: make PYTHON=/path/to/python3.12 test
PYTHON ?=
# Processes that run tests side by side; some tests start clusters, so not one for each core.
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test check lint bench docs reliability clean

help:
	@echo "make demo    a little real tissue made isotropic by local workers, audited, compared with the truth"
	@echo "make test    all tests, and each benchmark once"
	@echo "make check   lint and the tests that take seconds"
	@echo "make lint    ruff, its formatter, the rooms' imports and mypy"
	@echo "make bench   measure the benchmarks"
	@echo "make docs    the documentation as a site, build/site/index.html; a warning is an error"
	@echo "make reliability  the fault tests, and their tables in docs/reliability.md"
	@echo "make clean   remove what was set up and built"

# The interpreter must run, be new enough and be able to make environments: pyenv leaves names
# on the path that do not run, and Debian packages venv apart.
$(READY): pyproject.toml constraints.txt Makefile
	@set -eu; \
	if [ ! -x $(BIN)/python ]; then \
	    found=""; \
	    for candidate in $(PYTHON) python3.11 python3.12 python3.13 python3; do \
	        if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
	            >/dev/null 2>&1; then found="$$candidate"; break; fi; \
	    done; \
	    if [ -z "$$found" ]; then \
	        echo "No Python >= 3.11 with venv was found (python3 is: $$(python3 --version 2>&1 || true))." >&2; \
	        echo "Install it (Debian: apt install python3 python3-venv) or say make PYTHON=/path/to/python3." >&2; \
	        exit 1; \
	    fi; \
	    "$$found" -m venv $(VENV); \
	fi; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    -c constraints.txt -e '.[view,dev,docs]'; \
	touch $@

demo: $(READY)
	$(BIN)/isochunk demo

test: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

check: lint
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not slow and not browser" tests

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m pytest --benchmark-enable --benchmark-only benchmarks

# The variable keeps Material from announcing its successor.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

reliability: $(READY)
	$(BIN)/python -m pytest tests/cluster/test_faults.py tests/storage/test_faults.py tests/cluster/test_slurm.py \
	    --reliability docs/reliability.md

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
