# make demo | make test | make test-portable | make lint | make bench; VENV=path reuses an environment
VENV ?= .venv
PYTHON ?= python3
PY = $(VENV)/bin/python
PYTEST = $(PY) -m pytest -q -n auto --dist loadfile  # a file is a worker's: its tests share what is slow to make
NUMERIC = $(addprefix tests/, models diffusion vocoder metrics data evaluation benchmarks/test_reference.py \
    $(addsuffix .py, $(addprefix test_, pipeline streams overlap conditional conditional_inputs sample finetune training prepare link avlink_training whole_clips clip_films memory steps)))

.PHONY: demo test test-portable lint bench

$(VENV)/.installed: requirements.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q -r requirements.txt
	touch $@

demo: $(VENV)/.installed
	$(PY) demo.py

test: $(VENV)/.installed
	$(PYTEST)

test-portable: $(VENV)/.installed  # numbers as on processors without AVX, and without AVX-512
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 $(PYTEST) $(NUMERIC)
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(PYTEST) $(NUMERIC)

lint: $(VENV)/.installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

bench: $(VENV)/.installed
	$(PY) benchmarks/summary.py
