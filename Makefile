# make demo | make test | make lint | make bench; VENV=path reuses an environment
VENV ?= .venv
PYTHON ?= python3
PY = $(VENV)/bin/python

.PHONY: demo test lint bench

$(VENV)/.installed: requirements.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q -r requirements.txt
	touch $@

demo: $(VENV)/.installed
	$(PY) demo.py

test: $(VENV)/.installed
	$(PY) -m pytest -q -n auto --dist loadfile  # a file is a worker's: its tests share what is slow to make

lint: $(VENV)/.installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

bench: $(VENV)/.installed
	$(PY) benchmarks/summary.py
