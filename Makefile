# `make demo` installs mnft and trains and evaluates a model on data that comes with it;
# `make test` installs it and runs all checks and tests; `make gpu` runs the tests that need a GPU.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: install demo test test-all gpu lint docs clean

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

# Without a GPU the tests are skipped, and say so.
gpu: install
	$(BIN)/pytest -m gpu
	@echo
	@echo "Next, with a config of real images and weights (benchmarks/gpu/README.md says what must"
	@echo "be seen; a smaller copy of images: benchmarks/gpu/shrink.py):"
	@echo "  $(BIN)/python benchmarks/gpu/equal.py CONFIG      the same figures as on the CPU"
	@echo "  $(BIN)/python benchmarks/gpu/phases.py CONFIG     where the seconds of a training go"
	@echo "  $(BIN)/python benchmarks/gpu/limit.py CONFIG      how close it comes to the GPU's limit"
	@echo "  $(BIN)/python benchmarks/gpu/matrix.py CONFIG     every setting runs"
	@echo "  $(BIN)/python benchmarks/gpu/stops.py CONFIG      SIGTERM and --resume, bit for bit"
	@echo "  $(BIN)/python benchmarks/gpu/memory.py CONFIG     too little memory"
	@echo "  $(BIN)/python benchmarks/gpu/processes.py CONFIG  several processes"

docs: install
	$(BIN)/python -m mnft.config.docs

clean:
	rm -rf $(VENV) runs data build *.egg-info
