# Everything a visitor or contributor runs. `make` alone lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
WHEELS := build/wheels
EMPTY := build/wheel-env
OLDEST := build/triton-3.6

.PHONY: help demo test coverage lint type check fix goals bench wheel-test docs kernels-triton-3.6 clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9.-]+:.*## / { printf "make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## a tree and a diffusion model of small digits, on the CPU, in minutes
	$(BIN)/treediffusion demo

test: $(VENV)/.installed-dev ## all tests
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

coverage: $(VENV)/.installed-dev ## the same, with the lines that they reach
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --cov --cov-report=term

lint: $(VENV)/.installed-dev ## rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(VENV)/.installed-dev ## mypy, strict
	$(BIN)/mypy

check: lint type test ## lint, type and test

fix: $(VENV)/.installed-dev ## repair what ruff can repair
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

goals: $(VENV)/.installed-dev ## measure the project's goals; one of them with ONLY=name
	$(BIN)/python bench/goals.py $(if $(ONLY),--only $(ONLY))

bench: $(VENV)/.installed-dev ## all benchmarks
	$(BIN)/python -m pytest bench/ --benchmark-only

# From build/, so that nothing of the checkout can be imported by accident.
wheel-test: $(VENV)/.installed-dev ## the wheel in an empty environment: base dependencies, no torch
	@rm -rf $(WHEELS) $(EMPTY)
	@echo "building the wheel and installing it in $(EMPTY): about a minute"
	@$(PIP) wheel --no-deps -w $(WHEELS) .
	@$(BIN)/python -m venv $(EMPTY)
	@$(EMPTY)/bin/python -m pip --disable-pip-version-check -q install $(WHEELS)/*.whl
	cd build && ../$(EMPTY)/bin/python -c "import treediffusion.runtime, treediffusion.kernels, treediffusion.export"
	cd build && ../$(EMPTY)/bin/treediffusion --help > /dev/null
	@echo "wheel-test: $$(ls $(WHEELS)) works with base dependencies alone"

docs: $(VENV)/.installed-dev ## the pages of docs/, into build/docs
	@$(PIP) install -e '.[docs]'
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs

kernels-triton-3.6: ## the kernels' tests with the oldest supported PyTorch, 2.11, and its Triton, 3.6
	@rm -rf $(OLDEST)
	@echo "installing PyTorch 2.11 and Triton 3.6 in $(OLDEST): up to 3 GB, some minutes"
	@$(PYTHON) -m venv $(OLDEST)
	@$(OLDEST)/bin/python -m pip --disable-pip-version-check -q install -e '.[train,cpu,test]' 'torch==2.11.*' 'triton==3.6.*'
	$(OLDEST)/bin/python -m pytest -q -n 2 --dist loadfile tests/kernels
	@rm -rf $(OLDEST)

clean: ## remove build products, not the environment
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .coverage

# The stamps are renewed when what is installed could differ; edits of the code are live.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info < (3, 14) or sys.exit("treediffusion needs Python 3.11 to 3.13, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	@echo "creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml CMakeLists.txt | $(VENV)/bin/python
	@echo "installing treediffusion with PyTorch and ONNX Runtime into $(VENV): up to 3 GB the first time, 2 to 15 minutes"
	@$(PIP) install -e '.[train,cpu]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml CMakeLists.txt | $(VENV)/bin/python
	@echo "installing treediffusion with PyTorch, ONNX Runtime and the tools into $(VENV): up to 3 GB the first time, 2 to 15 minutes"
	@$(PIP) install -e '.[train,cpu,dev]'
	@touch $(VENV)/.installed $@
