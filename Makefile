# Plain `make` lists the targets.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# The stages' commands say `python`: it has to be this environment's.
export PATH := $(abspath $(BIN)):$(PATH)
# No usage data, no look-ups of newer versions: a run talks to nobody.
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
export NO_ALBUMENTATIONS_UPDATE := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false

MLFLOW_PORT ?= 5000
PREFECT_PORT ?= 4200

.PHONY: help install demo flow ui review lint test test-slow bench bench-gpu clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(INSTALLED) ## Make the virtual environment (.venv) with pinned versions

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Winnow needs Python 3.11 or newer, not " + sys.version.split()[0] + ": try make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo 'Installing into $(VENV): several gigabytes, some minutes the first time'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install ## Run the whole pipeline on the built-in digits and show what it bought
	dvc repro
	@python -m stages.reporting.summary

flow: install ## The same graph through Prefect
	python -m flows.pipeline

ui: install ## Start MLflow and Prefect on this machine and say where they are
	@python -m flows.ui --mlflow-port $(MLFLOW_PORT) --prefect-port $(PREFECT_PORT)

review: install ## Review suspected label errors in the browser; decisions go to data/reviews.csv
	@python -m stages.review

lint: install ## ruff (lint and format) and mypy
	ruff check .
	ruff format --check .
	mypy

test: lint ## ruff, mypy and the tests, slow ones left out
	python -m pytest -n auto --maxprocesses 8 -m 'not slow'

test-slow: install ## The tests that take minutes
	python -m pytest -m slow

bench: install ## The measurements of benchmarks/
	python -m benchmarks.ingest_speed
	python -m benchmarks.ingest_memory
	python -m benchmarks.near_duplicates
	python -m benchmarks.noise_rules
	python -m benchmarks.noise_overhead
	python -m benchmarks.training_speed
	python -m benchmarks.train_stage_overhead
	python -m benchmarks.transfer
	python -m benchmarks.gan_speed
	python -m benchmarks.gan_quality
	python -m benchmarks.demo_seeds

bench-gpu: install ## Those of benchmarks/gpu, an hour in all; PEER=path of cifar10-airbench's legacy/airbench94.py
	python -m benchmarks.gpu.training_loop --peer $(PEER)
	python -m benchmarks.gpu.loader --peer $(PEER)
	python -m benchmarks.gpu.resnet18
	python -m benchmarks.gpu.noisy_labels --labels aggregate
	python -m benchmarks.gpu.noisy_labels --labels random1
	python -m benchmarks.gpu.noisy_labels --labels worst
	python -m benchmarks.gpu.long_tail
	python -m benchmarks.gpu.gan
	python -m benchmarks.gpu.growth

clean: ## Remove what the stages wrote (DVC's cache and MLflow's records stay)
	rm -rf models reports data/ingested data/noise data/curated data/augmented data/synthetic data/truth.parquet
