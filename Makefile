# Everything a fresh machine with Python 3.11+ and make needs: `make run` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONFIG ?= configs/gateway.toml
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help run test test-all lint types tests bench bench-quick clean

help: ## what can be made
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

$(BIN)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "chat-gateway needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

run: $(BIN)/.installed ## set up and start the gateway with configs/gateway.toml
	@exec $(BIN)/chat-gateway serve --config $(CONFIG)

test: lint types tests ## set up, then linters, mypy --strict and all tests with coverage

lint: $(BIN)/.installed
	$(BIN)/ruff check .

types: $(BIN)/.installed
	$(BIN)/mypy

tests: $(BIN)/.installed
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest tests --ignore tests/e2e $(PYTEST_ARGS)
	$(BIN)/coverage report
	$(BIN)/python -m pytest tests/e2e $(PYTEST_ARGS)

clean: ## remove what was built
	rm -rf $(VENV) .venv-* build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
