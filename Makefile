# hypimg. `make help` lists the targets.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python

# Settings of a table: make reproduce-table3 BUDGET=cpu SEEDS=5 JOBS=2 DEVICE=auto ONLY='*/n=2' FRESH=1
BUDGET ?=
SEEDS ?=
JOBS ?= 1
DEVICE ?= auto
ONLY ?=
FRESH ?=
ARGS ?=
TABLE_ARGS = $(if $(BUDGET),budget=$(BUDGET)) $(if $(SEEDS),seeds=$(SEEDS)) jobs=$(JOBS) device=$(DEVICE) \
	$(if $(ONLY),only='$(ONLY)') $(if $(FRESH),fresh=$(FRESH)) $(ARGS)

.PHONY: help setup demo test test-all lint data hyperbolicity reproduce-table1 reproduce-table2 reproduce-table3 \
	reproduce-table3-curvature reproduce-table4 reproduce-table5 reproduce-table7 reproduce-cifar-fs \
	reproduce-cifar-fs-tuning reproduce-cifar-fs-sweep reproduce-birds2010 reproduce-pr-table1 reproduce-pr-fig2 \
	reproduce-pr-fig3 reproduce-fig1 reproduce-fig3 reproduce-fig5 reproduce-fig6 \
	benchmark benchmark-geometry benchmark-fewshot benchmark-poincare clean

help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-28s %s\n", $$1, $$2}'
	@echo "  Tables take BUDGET=paper|cpu SEEDS=5 JOBS=1 DEVICE=auto ONLY='row/column' FRESH=1 and ARGS='data_dir=...'."

setup: .venv/.done  ## make .venv with the tested versions; costs nothing once done

.venv/.done: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hypimg needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep -E '^(torch|torchvision)==' constraints.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[launch,fast,dev]'
	@touch $@

demo: setup  ## digits in the Poincaré disk: trains within a minute, no data needed, ends with a picture
	@$(RUN) train.py

test: setup  ## the suite (what CI runs)
	$(RUN) -m pytest

test-all: setup  ## the suite with the slow tests
	$(RUN) -m pytest -m ''

lint: setup  ## ruff and mypy, as CI runs them
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

data: setup  ## which data sets are found, what is missing, where to get it; fills the store
	@$(RUN) scripts/prepare_data.py $(ARGS)

hyperbolicity: setup  ## how hyperbolic is a folder of images, and which c: ARGS='images=photos/'
	@$(RUN) scripts/hyperbolicity.py $(ARGS)

reproduce-table1: setup  ## HIE Table 1: δ of the disk, the hemisphere, the sphere and a tree (a minute)
	@$(RUN) scripts/reproduce.py hie_table1 $(TABLE_ARGS)

reproduce-table2: setup  ## HIE Table 2: δ of image data sets in the features of pretrained encoders
	@$(RUN) scripts/reproduce.py hie_table2 $(TABLE_ARGS)

reproduce-table3: setup  ## HIE Table 3: d(x, 0) and p_max tell MNIST from Omniglot, with Figures 1 and 5
	@$(RUN) scripts/reproduce.py hie_table3 $(TABLE_ARGS)

reproduce-table3-curvature: setup  ## how c was chosen for Table 3: validation accuracy over c and n
	@$(RUN) scripts/reproduce.py hie_table3_curvature $(TABLE_ARGS)

reproduce-table4: setup  ## HIE Table 4: few-shot accuracy on miniImageNet, each arm beside its controls
	@$(RUN) scripts/reproduce.py hie_table4 $(TABLE_ARGS)

reproduce-table5: setup  ## HIE Table 5: few-shot accuracy on CUB, whole photographs and cut to the bird
	@$(RUN) scripts/reproduce.py hie_table5 $(TABLE_ARGS)

reproduce-table7: setup  ## HIE Table 7: few-shot accuracy on Omniglot
	@$(RUN) scripts/reproduce.py hie_table7 $(TABLE_ARGS)

reproduce-cifar-fs: setup  ## our own few-shot table, with Figure 6 (BUDGET=cpu: some 5 minutes a run on one core)
	@$(RUN) scripts/reproduce.py cifar_fs $(TABLE_ARGS)

reproduce-cifar-fs-tuning: setup  ## how c and the temperatures of that table were chosen: by the validation classes
	@$(RUN) scripts/reproduce.py cifar_fs_tuning $(TABLE_ARGS)

reproduce-cifar-fs-sweep: setup  ## its accuracy by curvature and by dimension, with the plots
	@$(RUN) scripts/reproduce.py cifar_fs_sweep $(TABLE_ARGS)
	@$(RUN) scripts/plot_sweep.py table=cifar_fs_sweep $(if $(BUDGET),budget=$(BUDGET))

reproduce-fig1: setup  ## HIE Figure 1: MNIST and Omniglot in the disk, from Table 3's evaluations
	@$(RUN) scripts/reproduce.py hie_table3 figures_only=hie_fig1 $(TABLE_ARGS)

reproduce-fig3: setup  ## HIE Figure 3: geodesics, a Möbius sum, the mean and hyperplanes in the disk; needs no run
	@$(RUN) scripts/reproduce.py hie_fig3 $(TABLE_ARGS)

reproduce-fig6: setup  ## HIE Figure 6: few-shot embeddings in the disk by hyperbolic UMAP, from cifar_fs's evaluations
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[umap]'
	@$(RUN) scripts/reproduce.py cifar_fs figures_only=hie_fig6 $(TABLE_ARGS)

reproduce-fig5: setup  ## HIE Figure 5: the distributions behind Table 3, from its evaluations
	@$(RUN) scripts/reproduce.py hie_table3 figures_only=hie_fig5 $(TABLE_ARGS)

reproduce-birds2010: setup  ## the CUB pipeline on 294 photographs of the older CUB-200; comparable with nothing
	@$(RUN) scripts/reproduce.py birds2010 $(TABLE_ARGS)

reproduce-pr-table1: setup  ## PR Table 1: Fréchet against midpoint batch norm on CIFAR-10, accuracy and time
	@$(RUN) scripts/reproduce.py pr_table1 $(TABLE_ARGS)

reproduce-pr-fig2: setup  ## PR Figure 2: norms through ten layers (no training); plain networks by initialisation
	@$(RUN) scripts/reproduce.py pr_fig2a device=$(DEVICE) $(if $(FRESH),fresh=$(FRESH)) $(ARGS)
	@$(RUN) scripts/reproduce.py pr_fig2 $(TABLE_ARGS)

reproduce-pr-fig3: setup  ## PR Figure 3: Poincaré ResNet-20 with and without ReLU, and at three curvatures
	@$(RUN) scripts/reproduce.py pr_fig3 $(TABLE_ARGS)

benchmark: setup  ## speed of the training loop, both arms in one process; one JSON line each
	@$(RUN) benchmarks/training.py

benchmark-geometry: setup  ## speed and digits of the geometry against geoopt and HypLL; rewrites their tables (12 minutes)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[peers]'
	$(RUN) benchmarks/geometry.py > benchmarks/geometry.jsonl
	$(RUN) benchmarks/means.py
	$(RUN) benchmarks/gromov.py > benchmarks/gromov.jsonl
	$(RUN) benchmarks/speed_report.py
	$(RUN) benchmarks/numerics.py

benchmark-fewshot: setup  ## speed of few-shot evaluation and of augmentation in batch; one JSON line each
	$(RUN) benchmarks/fewshot.py
	$(RUN) benchmarks/augment.py > benchmarks/augment.jsonl

benchmark-poincare: setup  ## Poincaré ResNet-20's training step against HypLL and the Euclidean one (minutes)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[peers]'
	$(RUN) benchmarks/poincare_resnet.py
	$(RUN) benchmarks/speed_report.py

clean:  ## remove what tools left behind; runs, results, data and .venv stay
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info outputs multirun
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
