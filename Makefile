# `make demo` installs mnft and trains and evaluates a model on data that comes with it;
# `make test` installs it and runs all checks and tests.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: install demo test test-all lint docs clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@echo "installing into $(VENV) (torch and all: about 6 GB, a few minutes)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -e '.[dev]'
	@touch $@

demo: install
	BEST=$$($(BIN)/mnft train configs/digits.yaml) && $(BIN)/mnft eval --ckpt "$$BEST"
	@echo
	@echo "What to try next, with a folder of your own images (one folder a class):"
	@echo "  $(BIN)/mnft init IMAGES    and then    $(BIN)/mnft train IMAGES.yaml"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict mnft

test: lint
	$(BIN)/pytest -n auto --dist loadfile -m "not slow and not gpu and not network"

test-all: lint
	$(BIN)/pytest -n auto --dist loadfile -m "not network"

docs: install
	$(BIN)/python -m mnft.config.docs

clean:
	rm -rf $(VENV) runs data build *.egg-info
