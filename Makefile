# make demo      environment, then a full run on the embedded digits; prints where the picture is
# make test      lint, types and tests (some 20 minutes on two cores)
# make test-all  the same with what is marked slow, and 50 kills: hours
# make install   the environment alone (.venv); PYTHON chooses the interpreter (3.11 to 3.13)
#
# Another interpreter beside the first: make test PYTHON=python3.13 VENV=.venv-3.13

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Two at a time, as most of them wait for other processes; a file, and the Ray that its tests share, is one worker's.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all install lint

demo: $(VENV)/installed
	$(BIN)/dpsw run configs/digits.yaml --output runs/demo

test: lint
	$(PYTEST) -m "not slow"

test-all: lint
	DPSW_KILLS=50 $(PYTEST)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "Python 3.11 to 3.13 is needed; choose one with PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -qq --upgrade pip
	$(BIN)/pip install -qq --constraint constraints.txt --editable '.[dev]'
	touch $@
