# Everything from nothing: `make quickstart` and `make test` create the virtual environment they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 2

.PHONY: quickstart test lint benchmarks clean

quickstart: $(VENV)/.runtime
	$(BIN)/mutransfer quickstart

test: $(VENV)/.development
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: $(VENV)/.development
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright

benchmarks: $(VENV)/.development
	for file in benchmarks/*.py; do $(BIN)/python $$file || exit 1; done

# One stamp per kind of environment: reinstalls only when the project's requirements change.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -c constraints.txt torch -e .
	touch $@

$(VENV)/.development: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -c constraints.txt torch -e '.[test,lint]'
	$(BIN)/python -m pip install -q --no-deps mup==1.0.0 pyyaml
	touch $@ $(VENV)/.runtime

clean:
	rm -rf $(VENV)
