# make demo      install mnft, then train and evaluate a model on data that comes with it
# make test      install mnft, then run lint, types and the default tests
# make test-all  also run the slow tests
# make gpu       run the tests that need a GPU
# make docs      regenerate docs/configuration.md and configs/schema.json

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: install demo test test-all gpu lint docs clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@echo "installing into $(VENV) (about 6 GB with torch, a few minutes)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -e '.[dev]'
	@touch $@

demo: install
	BEST=$$($(BIN)/mnft train configs/digits.yaml) && $(BIN)/mnft eval --ckpt "$$BEST"
	@echo
	@echo "Next, with your own images in one folder per class:"
	@echo "  $(BIN)/mnft init IMAGES    and then    $(BIN)/mnft train IMAGES.yaml"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict mnft

test: lint
	$(BIN)/pytest -n auto --dist loadfile -m "not slow and not gpu and not network"

test-all: lint
	$(BIN)/pytest -n auto --dist loadfile -m "not network"

# Without a GPU these tests are skipped, and pytest says why.
gpu: install
	$(BIN)/pytest -m gpu
	@echo
	@echo "Next, with a config of real images and weights (benchmarks/gpu/README.md says what must"
	@echo "hold; benchmarks/gpu/shrink.py makes a smaller copy of images):"
	@echo "  $(BIN)/python benchmarks/gpu/equal.py CONFIG      are results those of the CPU?"
	@echo "  $(BIN)/python benchmarks/gpu/phases.py CONFIG     where does training spend its time?"
	@echo "  $(BIN)/python benchmarks/gpu/limit.py CONFIG      how close is it to the GPU's limit?"
	@echo "  $(BIN)/python benchmarks/gpu/matrix.py CONFIG     does every setting run?"
	@echo "  $(BIN)/python benchmarks/gpu/stops.py CONFIG      do SIGTERM and --resume change nothing?"
	@echo "  $(BIN)/python benchmarks/gpu/memory.py CONFIG     what happens with too little memory?"
	@echo "  $(BIN)/python benchmarks/gpu/processes.py CONFIG  do several processes work?"

docs: install
	$(BIN)/python -m mnft.config.docs

clean:
	rm -rf $(VENV) runs data build *.egg-info
