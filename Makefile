# make demo | make live | make test | make test-portable | make lint | make bench; VENV=path reuses an environment
VENV ?= .venv
PYTHON ?= python3
PY = $(VENV)/bin/python
PYTEST = $(PY) -m pytest -q -n auto --dist loadfile  # a file is a worker's: its tests share what is slow to make
NUMERIC = $(addprefix tests/, models diffusion vocoder metrics data evaluation benchmarks/test_reference.py \
    $(addsuffix .py, $(addprefix test_, pipeline streams overlap conditional conditional_inputs sample finetune training prepare link avlink_training whole_clips clip_films memory steps)))

.PHONY: demo live test test-portable lint bench

$(VENV)/.installed: requirements.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q -r requirements.txt
	touch $@

demo: $(VENV)/.installed
	$(PY) demo.py

live: $(VENV)/.installed  # on the demo's model; on that of the quick demo if there is none, which it trains
	@test -d runs/demo/export || test -d runs/demo/quick/export || { \
	echo "no model in runs/demo yet: training the quick one, in a minute or two; make demo trains a better one"; \
	$(PY) demo.py --quick; }
	$(PY) live.py --model-ckpt $$(test -d runs/demo/export && echo runs/demo/export || echo runs/demo/quick/export)

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
