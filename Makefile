# make setup      the environment, in .venv (or give another one: make test PYTHON=/path/to/python)
# make reproduce  the main table on the embedded miniature benchmark -> results/report.html
#                 more options in ARGS, e.g. make reproduce ARGS="--seeds 0 1 2"
# make test       all tests     make check  lint and format     make format  mends both
# make benchmarks speed figures -> benchmarks/README.md        make clean

SHELL := /bin/bash
VENV ?= .venv
ARGS ?=

ifdef PYTHON
ENVIRONMENT :=
else
PYTHON := $(VENV)/bin/python
ENVIRONMENT := $(VENV)/.ready
endif

.PHONY: setup reproduce test check format benchmarks clean

setup: $(ENVIRONMENT)

# The stamp is written last, so that an interrupted set-up is repeated and a finished one is not.
$(VENV)/.ready: pip_requirements.txt pyproject.toml
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: python3 is older than 3.11; install Python 3.11 or newer" >&2; exit 2; }
	@if command -v uv >/dev/null; then \
		uv venv --quiet --allow-existing $(VENV) && uv pip install --quiet --python $(VENV)/bin/python -r pip_requirements.txt; \
	else \
		python3 -m venv $(VENV) && $(VENV)/bin/python -m pip install --disable-pip-version-check --quiet -r pip_requirements.txt; \
	fi || { echo "error: the environment in $(VENV) could not be made (see above); mend it and run make setup again" >&2; exit 2; }
	@touch $@
	@echo "environment ready: source $(VENV)/bin/activate"

reproduce: $(ENVIRONMENT)
	$(PYTHON) reproduce.py --preset miniature $(ARGS)

# Files of tests run side by side, one per core; an environment of one's own may lack pytest-xdist.
test: $(ENVIRONMENT)
	$(PYTHON) -m pytest $$($(PYTHON) -c "import xdist" 2>/dev/null && echo " -n auto --maxprocesses 4 --dist loadfile") $(ARGS)

check: $(ENVIRONMENT)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

format: $(ENVIRONMENT)
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

benchmarks: $(ENVIRONMENT)
	$(PYTHON) benchmarks/report.py $(ARGS)

# Results and trained networks stay; remove saved_models, features, results, logs and miniature_data by hand.
clean:
	rm -rf $(VENV) *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
