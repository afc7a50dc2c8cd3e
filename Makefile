# make run   sets up .venv, executes all chapters, writes notebooks and pages to build/
# make test  the same set-up, then lint, unit tests and every notebook compared with its committed outputs
PYTHON ?= python3
BIN := .venv/bin
# As in the extra gpu. CUDA 12 asks for a driver from 525 on, CUDA 13 for one from 580 on.
CUDA := jax[cuda12]
NBVAL := $(BIN)/pytest --nbval notebooks --nbval-sanitize-with tests/nbval_sanitize.cfg --nbval-cell-timeout 120 -n 2 --dist loadfile -p no:cacheprovider

.PHONY: run test test-notebooks test-gpu test-published need-gpu book lab student refresh bench bench-load bench-generate bench-compare lock derived

.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 14) else "Python 3.11 to 3.14 is needed, $(PYTHON) is %d.%d; try make PYTHON=python3.12" % v)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

run: .venv/installed
	$(BIN)/optbook run

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/pytest tests -n 2
	$(MAKE) test-notebooks

# Twice: as they are, and with every loaded weight off by a millionth, as another machine's arithmetic would have it.
test-notebooks: .venv/installed
	$(NBVAL)
	IPYTHONDIR=$(CURDIR)/tests/noisy_weights $(NBVAL)

# On a machine with an NVIDIA GPU, and nowhere else. CUDA's packages are not in the lock: they are Linux only, and 3 GB.
test-gpu: export JAX_PLATFORMS = cuda,cpu
test-gpu: export XLA_PYTHON_CLIENT_PREALLOCATE = false
test-gpu: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint requirements.lock "$(CUDA)"
	$(MAKE) need-gpu
	$(BIN)/optbook doctor
	$(BIN)/pytest tests -n 2
	$(NBVAL)

# The published presets, downloaded as far as this machine can hold them, against what is known of them.
test-published: .venv/installed
	$(BIN)/pytest tests -m network

need-gpu:
	@$(BIN)/python -c 'import jax; print(jax.devices("cuda"))' 2>/dev/null || { echo "make test-gpu: JAX finds no NVIDIA GPU on this machine"; exit 1; }

# The committed notebooks as a site, build/book/index.html, executed nowhere. A warning is an error.
BUILD := build
book: .venv/installed
	rm -rf $(BUILD)/book-source $(BUILD)/book
	mkdir -p $(BUILD)/book-source
	cp -R tools/book/*.md notebooks $(BUILD)/book-source
	$(BIN)/sphinx-build --quiet --fail-on-warning -c tools/book $(BUILD)/book-source $(BUILD)/book

lab: .venv/installed
	$(BIN)/jupyter lab notebooks

# Copies for a course: without the solutions, and without outputs.
student: .venv/installed
	$(BIN)/jupyter nbconvert notebooks/*.ipynb --to notebook --output-dir build/student --ClearOutputPreprocessor.enabled=True \
		--TagRemovePreprocessor.enabled=True --TagRemovePreprocessor.remove_cell_tags=solution

refresh: .venv/installed
	$(BIN)/python tools/refresh_notebooks.py

bench: .venv/installed
	$(BIN)/python tools/bench.py

PRESETS ?= opt_1.3b_en
bench-load: .venv/installed
	$(BIN)/python tools/bench_load.py $(PRESETS)

bench-generate: .venv/installed
	$(BIN)/python tools/bench_generate.py

# SWEEP="NOTEBOOK --set NAME=VALUE,…" measures another notebook.
bench-compare: .venv/installed
	$(BIN)/python tools/bench_compare.py $(SWEEP)

# Needs uv. TensorFlow is left out on purpose: see [tool.uv] in pyproject.toml. The extra gpu stays out: see test-gpu.
UV_COMPILE := uv pip compile pyproject.toml --universal --fork-strategy fewest --python-version 3.11 \
	--no-emit-index-url --no-header --no-annotate
lock:
	$(UV_COMPILE) --extra dev --extra book --quiet --output-file requirements.lock
	sed -i.bak -E "s/ ; sys_platform == 'darwin' or sys_platform == 'linux'$$//" requirements.lock && rm requirements.lock.bak
	$(MAKE) derived

# What conda and Binder install, from the lock and from the list of what the package needs.
derived:
	$(UV_COMPILE) 2>/dev/null | $(PYTHON) tools/make_environment.py
