# Everything a fresh machine with Python 3.11+ and make needs: `make run` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONFIG ?= configs/gateway.toml
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help run test test-all lint types tests bench bench-quick bench-chart bench-guard bench-workers bench-reliability stress chaos fuzz clean

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

# Coverage is that of the packages without sockets, by their own tests; the others run on two cores.
tests: $(BIN)/.installed
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest tests/pipeline tests/retry tests/stages $(PYTEST_ARGS)
	$(BIN)/coverage report
	$(BIN)/python -m pytest tests -n 2 --ignore tests/pipeline --ignore tests/retry --ignore tests/stages $(PYTEST_ARGS)

bench: $(BIN)/.installed ## the scenarios of bench/ against the gateway and a baseline, with a table
	$(BIN)/python -m bench $(BENCH_ARGS)

bench-quick: $(BIN)/.installed ## the same in under a minute
	$(BIN)/python -m bench --quick $(BENCH_ARGS)

bench-chart: $(BIN)/.installed ## the scenarios, and their figures as bench/out/comparison.png and .svg
	$(BIN)/python -m bench --chart bench/out $(BENCH_ARGS)

bench-workers: $(BIN)/.installed ## two workers beside one: processor time, latency, memory; BENCH_ARGS=--curve for 1, 2, 4
	$(BIN)/python -m bench.workers $(BENCH_ARGS)

bench-guard: $(BIN)/.installed ## fail if a message costs much more than it did, compared with the baseline
	$(BIN)/python -m bench.guard

# Where atheris has no wheel there is no fuzzing, which is said; for 3.11 it has one, so there it must run.
test-all: lint types ## tests, then fuzzing, on every interpreter from 3.11 to 3.13 that is found
	@found=0; for version in 3.11 3.12 3.13; do \
		python=$$(command -v python$$version || ls -d $$HOME/.pyenv/versions/$$version.*/bin/python 2>/dev/null | tail -n 1); \
		if [ -z "$$python" ] || ! "$$python" -c '' 2>/dev/null; then \
			python=$$(ls -d $$HOME/.pyenv/versions/$$version.*/bin/python 2>/dev/null | tail -n 1); fi; \
		if [ -z "$$python" ]; then echo "python$$version: not found, left out"; continue; fi; \
		found=1; echo "python$$version: $$python"; \
		venv=.venv-$$version; set -- --no-print-directory PYTHON="$$python" VENV=$$venv; \
		$(MAKE) "$$@" tests || exit 1; \
		if $(MAKE) "$$@" $$venv/bin/.installed-fuzz; then $(MAKE) "$$@" fuzz || exit 1; \
		elif [ $$version = 3.11 ]; then echo "python$$version: fuzzing could not be set up" >&2; exit 1; \
		else echo "python$$version: LEFT OUT of fuzzing: no wheel of atheris could be installed"; fi; \
	done; [ $$found = 1 ]

SEED ?= 1
STRESS_SECONDS ?= 30
FUZZ_SECONDS ?= 60

stress: $(BIN)/.installed ## a self-checking run of clients that stall, vanish and return: SEED=n
	$(BIN)/python -m bench.stress --seed $(SEED) --seconds $(STRESS_SECONDS)

CHAOS_SECONDS ?= 60
chaos: $(BIN)/.installed ## workers are killed and stopped under load for CHAOS_SECONDS, every message accounted for: SEED=n
	$(BIN)/python -m bench.chaos --seed $(SEED) --seconds $(CHAOS_SECONDS)

$(BIN)/.installed-fuzz: $(BIN)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary atheris -c constraints.txt -e '.[fuzz]'
	@touch $@

fuzz: $(BIN)/.installed-fuzz ## coverage-guided fuzzing of the line codec and of the frames between workers, for FUZZ_SECONDS
	$(BIN)/python -m bench.fuzz --seconds $(FUZZ_SECONDS)

bench-reliability: $(BIN)/.installed ## the promises under slow and hostile peers, with their figures
	$(BIN)/python -m bench.reliability $(BENCH_ARGS)

clean: ## remove what was built
	rm -rf $(VENV) .venv-* build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
