# Everything from nothing: `make quickstart` and `make test` create the virtual environment they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 2

.PHONY: quickstart test lint benchmarks benchmarks-long clean

# Those that take longer than a few minutes: hundreds of models through the check, of runs, kills and simulated sweeps.
LONG := $(addprefix benchmarks/,check_strangers.py check_variants.py adaptive_search.py sweep_kills.py verdict_coverage.py prediction_coverage.py \
	optimizer_checks.py probe_packages.py duration_transfer.py grow_exactness.py)
# These need transformers, which the development environment does not hold.
APART := $(addprefix benchmarks/,branches_in_transformers.py grow_transformers.py)

quickstart: $(VENV)/.runtime
	$(BIN)/mutransfer quickstart

test: $(VENV)/.development
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: $(VENV)/.development
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright

benchmarks: $(VENV)/.development
	for file in $(filter-out $(LONG) $(APART),$(wildcard benchmarks/[!_]*.py)); do $(BIN)/python $$file || exit 1; done

benchmarks-long: $(VENV)/.development
	for file in $(wildcard $(LONG)); do $(BIN)/python -m $$(echo $${file%.py} | tr / .) || exit 1; done

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
