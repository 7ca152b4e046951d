# The same without make is in README.md, one line each.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: help run doctor test test-all bubblewrap lint format clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

.venv/installed: requirements.txt constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

run: .venv/installed ## install what is needed, check params.yaml, run what changed, show base against tuned
	@$(BIN)/python -m tools.plan
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/dvc repro
	@$(BIN)/python -m stages.report --show

doctor: .venv/installed ## what is wrong with this machine, environment or repository, and what to do
	@$(BIN)/python -m tools.doctor

# The tests break out of the sandbox for generated code, or try to: none is skipped for want of it.
bubblewrap:
	@command -v bwrap > /dev/null || [ "$$(uname)" != Linux ] || \
	{ [ "$$(id -u)" = 0 ] && apt-get update --quiet=2 && apt-get install --quiet=2 --yes bubblewrap; } || \
	{ echo "The tests need bubblewrap: apt-get install bubblewrap, or your system's package of that name"; exit 1; }

# A worker for each core, up to four. Each computes with one thread. Tests of one file share fixtures and a worker.
PYTEST = PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest \
	--numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: .venv/installed-dev bubblewrap ## the tests without the slow ones; one runs the whole pipeline
	@$(PYTEST)

test-all: .venv/installed-dev bubblewrap ## all tests that need no GPU
	@$(PYTEST) -m "not gpu"

lint: .venv/installed-dev ## ruff, as CI runs it
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: .venv/installed-dev ## let ruff mend what it can
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean: ## remove the virtual environment; DVC's cache and outputs stay
	rm -rf .venv
