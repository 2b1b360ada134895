# Works on a bare machine with git, make, pip and Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help setup demo test lint format faults bench clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  \1|/' | column -t -s '|'

setup: $(READY) ## Install gentrain and all it needs into .venv

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: setup ## Train, score and draw on embedded data (under 3 minutes on 2 cores)
	$(BIN)/gentrain experiment=demo

lint: setup ## Ruff and strict mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint ## All tests, with lint and types
	$(BIN)/python -m pytest -n 2 --dist worksteal

format: setup ## Let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

faults: setup ## Inject every fault of the catalogue (up to an hour); writes outputs/faults.json
	$(BIN)/python scripts/faults.py

bench: setup ## Measure throughput and start-up; writes benchmarks/results/*.json
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/gan.py
	$(BIN)/python benchmarks/autoencoder.py
	$(BIN)/python benchmarks/sampling_ar.py
	$(BIN)/python benchmarks/densities.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/safety.py

clean: ## Remove what make and the tools have made (not outputs/)
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
