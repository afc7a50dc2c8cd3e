# make run   sets up .venv, executes all chapters, writes notebooks and pages to build/
# make test  the same set-up, then lint, unit tests and every notebook compared with its committed outputs
PYTHON ?= python3
BIN := .venv/bin
NBVAL := $(BIN)/pytest --nbval notebooks --nbval-sanitize-with tests/nbval_sanitize.cfg --nbval-cell-timeout 120 -n 2 --dist loadfile -p no:cacheprovider

.PHONY: run test test-notebooks lab refresh bench bench-load lock

.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else "Python 3.11 to 3.13 is needed, $(PYTHON) is %d.%d; try make PYTHON=python3.12" % v)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

run: .venv/installed
	$(BIN)/optbook run

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest tests -n 2
	$(MAKE) test-notebooks

# Twice: as they are, and with every loaded weight off by a millionth, as another machine's arithmetic would have it.
test-notebooks: .venv/installed
	$(NBVAL)
	IPYTHONDIR=$(CURDIR)/tests/noisy_weights $(NBVAL)

lab: .venv/installed
	$(BIN)/jupyter lab notebooks

refresh: .venv/installed
	$(BIN)/python tools/refresh_notebooks.py

bench: .venv/installed
	$(BIN)/python tools/bench.py

PRESETS ?= opt_1.3b_en
bench-load: .venv/installed
	$(BIN)/python tools/bench_load.py $(PRESETS)

# Needs uv. TensorFlow is left out on purpose: see [tool.uv] in pyproject.toml.
lock:
	uv pip compile pyproject.toml --all-extras --universal --fork-strategy fewest --python-version 3.11 \
		--no-emit-index-url --no-header --no-annotate --quiet --output-file requirements.lock
	sed -i.bak -E "s/ ; sys_platform == 'darwin' or sys_platform == 'linux'$$//" requirements.lock && rm requirements.lock.bak
