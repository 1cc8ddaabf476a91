# Each target is a line or two that a person could also type; .venv is made on first use.
PYTHON ?= python3.11
VENV := .venv
RUN := $(VENV)/bin/python -m
# Processes of the test suite.
JOBS ?= 2
STAMP := $(VENV)/.installed
HYDRA_NEXT := .venv-hydra-next
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(STAMP) ## make .venv with the exact versions of constraints.txt (PIP_ARGS=... goes to pip)

$(STAMP): pyproject.toml kernels/pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS) -e kernels -e '.[dev]'
	@touch $@

demo: $(STAMP) ## train, convert, check, time and draw: accuracy against bits on the digits, under 5 minutes
	$(RUN) experiments.demo

test: lint $(STAMP) ## lint, type check and the whole test suite (also: make test-fast)
	$(RUN) pytest -q -n $(JOBS) --dist worksteal

test-fast: $(STAMP) ## the test suite without lint and types
	$(RUN) pytest -q -n $(JOBS) --dist worksteal

test-hydra-next: ## tests/experiments with the newest pre-releases of Hydra and OmegaConf, in a .venv of their own
	$(PYTHON) -m venv $(HYDRA_NEXT)
	$(HYDRA_NEXT)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS) -e kernels -e '.[dev]'
	$(HYDRA_NEXT)/bin/pip install --quiet --disable-pip-version-check --pre --upgrade $(PIP_ARGS) hydra-core omegaconf
	$(HYDRA_NEXT)/bin/pip freeze | grep -iE '^(hydra-core|omegaconf)=='
	$(HYDRA_NEXT)/bin/python -m pytest -q -n $(JOBS) --dist worksteal tests/experiments

lint: $(STAMP) ## ruff (lint, format) and mypy
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

bench: $(STAMP) ## packed LeNet-5 and binary layers beside PyTorch FP32
	$(RUN) experiments.benchmark
	$(RUN) experiments.benchmark suite=kernels

figures: $(STAMP) ## redraw the figures from results/
	$(RUN) paper_figures.accuracy_vs_bits
	$(RUN) paper_figures.accuracy_vs_bits --results results/accuracy_vs_bits_mnist.json --output results/figures/accuracy_vs_bits_mnist.png
	$(RUN) paper_figures.accuracy_vs_bits --results results/accuracy_vs_bits_cifar10.json --output results/figures/accuracy_vs_bits_cifar10.png
	$(RUN) paper_figures.ladder --results results/ladder_lenet5_mnist.json --output results/figures/ladder_lenet5_mnist.png
	$(RUN) paper_figures.ladder --results results/ladder_resnet8_cifar10.json --output results/figures/ladder_resnet8_cifar10.png
	$(RUN) paper_figures.ladder_table --published resnet50
	$(RUN) paper_figures.ladder_table --results results/ladder_efficientnet_lite0.json --output results/tables/ladder_efficientnet_lite0.md
	$(RUN) paper_figures.pareto
	$(RUN) paper_figures.pareto --results results/accuracy_vs_bits_mnist.json --output results/figures/pareto_mnist.png
	$(RUN) paper_figures.pareto --results results/accuracy_vs_bits_cifar10.json --output results/figures/pareto_cifar10.png
	$(RUN) paper_figures.method_ranking
	$(RUN) paper_figures.sensitivity
	$(RUN) paper_figures.xnor_net_figure4
	$(RUN) paper_figures.xnor_net_memory
	$(RUN) paper_figures.xnor_net_tables
	$(RUN) paper_figures.networks
	$(RUN) paper_figures.doctor
	$(RUN) paper_figures.quantizer_gallery
	$(RUN) paper_figures.quantizer_table
	$(RUN) paper_figures.concepts
	$(RUN) paper_figures.latency_vs_bits
	$(RUN) paper_figures.onnx_graphs

docs: $(VENV)/.docs-installed ## build the documentation site into site/, strictly
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict --quiet

$(VENV)/.docs-installed: $(STAMP)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS) -e '.[docs]'
	@touch $@

clean: ## remove .venv, runs and caches
	rm -rf $(VENV) $(HYDRA_NEXT) runs site .mypy_cache .ruff_cache .pytest_cache .hypothesis

.PHONY: help setup demo test test-fast test-hydra-next lint bench figures docs clean
