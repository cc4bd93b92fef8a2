# The two commands a newcomer needs are `make demo` and `make test`; both set up .venv on their first run.
PYTHON ?= python3
BIN := .venv/bin
unexport PYTHONDONTWRITEBYTECODE # images of Python set it; then each process compiles all that it imports, seconds each time

.PHONY: help demo test check bench docs docs-check release-check fix clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

demo: .venv/ready ## explain scenes of handwritten digits; pictures and scores in out/
	$(BIN)/python examples/demo.py

test: .venv/ready ## run all tests
	$(BIN)/python -m pytest -n auto --dist worksteal

check: .venv/ready ## lint, types, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n auto --dist worksteal

bench: DEVICE ?= cpu
bench: .venv/ready ## the cost of each method and score against plain forward passes
	$(BIN)/python benchmarks/cost.py --device $(DEVICE)
	$(BIN)/python benchmarks/throughput.py --device $(DEVICE)
	$(BIN)/python benchmarks/wrappers.py --device $(DEVICE)
	$(BIN)/python benchmarks/answers.py --device $(DEVICE)
	$(BIN)/python benchmarks/comparison.py --device $(DEVICE)

docs: .venv/ready ## build the documentation site in build/site; every example runs, and a warning is an error
	$(BIN)/python -m sphinx -b html -W --keep-going -q docs build/site

docs-check: docs ## look at the built site in a headless Chromium: links, console, narrow windows, keyboard, contrast
	$(BIN)/python docs/_ext/check_site.py build/site

release-check: .venv/ready ## build, check, and test the wheel with the lowest and the newest versions of what it needs
	release/check.sh

fix: .venv/ready ## format and repair what can be repaired
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment and everything written by the commands above
	rm -rf .venv out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info

# uv resolves and installs in seconds what takes pip minutes; pip itself brings it.
.venv/ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed; try make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --python $(BIN)/python --editable '.[dev]'
	touch $@
