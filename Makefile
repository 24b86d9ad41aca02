# Each target works by itself from a fresh clone: it makes .venv and installs what it needs, once.
# PYTHON=python3.12 chooses the interpreter; PIP_FLAGS goes to pip (an index for another torch build, for example).
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11 python3.10 python,\
	$(shell $(p) -c 'import sys; (3, 10) <= sys.version_info[:2] < (3, 14) and print("$(p)")' 2>/dev/null)))
PIP_FLAGS ?=
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt $(PIP_FLAGS)

.PHONY: demo test test-slow lint bench clean

demo: .venv/.installed                  ## a paragraph, pictures, spoken words and captions in ./demo-output
	$(BIN)/python examples/quickstart.py

test: .venv/.installed-test             ## seven minutes on two cores, no network
	$(BIN)/python -m pytest -q -m "not slow"

test-slow: .venv/.installed-test        ## everything
	$(BIN)/python -m pytest -q --timeout 3600

lint: .venv/.installed-lint
	$(BIN)/python -m ruff check .

bench: .venv/.installed-bench           ## tables on the screen, JSON in benchmarks/results; DATA="audio=FOLDER ..." for those on real data
	$(BIN)/python -m benchmarks $(DATA)

clean:
	rm -rf .venv build *.egg-info

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "commonthread needs Python 3.10 to 3.13; none was found. Install one, or name it: make demo PYTHON=/path/to/python3.12"; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; echo "python could not make a virtual environment (on Debian and Ubuntu: apt install python3-venv)"; exit 1; }

.venv/.installed: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing commonthread into .venv (torch is large: some minutes the first time)"
	$(INSTALL) -e .
	@touch $@

.venv/.installed-test: .venv/.installed
	$(INSTALL) -e '.[test]'
	@touch $@

.venv/.installed-bench: .venv/.installed
	$(INSTALL) -e '.[bench]'
	@touch $@

.venv/.installed-lint: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) ruff
	@touch $@
