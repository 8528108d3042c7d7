# One virtual environment at the root, `.venv`, serves every target. `make help` lists them.
#
# When the environment is made (the first time, and when what it is made from has changed):
#   make demo TORCH=cpu            takes PyTorch's CPU build where pip would fetch a CUDA build
#   make demo PYTHON=python3.12    chooses the interpreter

PYTHON ?=
TORCH ?=
OUT ?= demo-output
JOBS ?= 2

.DEFAULT_GOAL := help
BIN := .venv/bin
# Threads of torch and faiss are limited where several test processes share the cores.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

# Written last, once everything is installed: an interrupted installation has none and is redone.
# Its name holds the checksum of what was installed from, and where (environments cannot be moved).
READY := .venv/.ready-$(shell { pwd; cat pyproject.toml constraints.txt tools/make-venv; } \
	| cksum | cut -d ' ' -f 1)
# An environment whose interpreter was removed is made again.
ifeq ($(realpath $(BIN)/python),)
.PHONY: $(READY)
endif

.PHONY: help demo test test-all lint types layers docs install clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

demo: $(READY)  ## train on 1,797 handwritten digits, sample, write demo-output/report.html
	$(BIN)/rqtool demo --out $(OUT)

test: lint types layers  ## lint, types, layers and the fast tests
	$(ONE_THREAD) $(BIN)/python -m pytest -q -n $(JOBS) -m "not slow"

test-all: lint types layers docs  ## the same, the strict docs and the slow tests
	$(ONE_THREAD) $(BIN)/python -m pytest -q -n $(JOBS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

layers: $(READY)
	$(BIN)/lint-imports

docs: $(READY)  ## build the documentation into site/, strictly
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

install: $(READY)  ## make the virtual environment only

clean:  ## remove the virtual environment, caches and built files; outputs of runs stay
	rm -rf .venv site build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find rqtoolkit apps tests benchmarks -type d -name __pycache__ -prune -exec rm -rf {} +

$(READY): 
	@./tools/make-venv "$(PYTHON)" "$(TORCH)"
	@touch $@
