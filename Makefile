# Each target does the set-up it needs; a second call finds it done.
#   make cpt       pre-train the tiny model on simulated SAR, two ranks, with numbers and pictures in runs/cpt
#   make test      lint, types and tests
#   make venv      only the environment

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RANKS ?= 2
ARGS ?=

.PHONY: venv cpt test lint clean

venv: $(VENV)/.installed

# torch first and pinned: a plain request for torch by another package could pull a second, larger build.
$(VENV)/.installed: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools wheel -c constraints.txt
	$(BIN)/python -m pip install --quiet torch numpy -c constraints.txt
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt -e '.[train,triton,geo,bench,dev]'
	touch $@

cpt: venv
	$(BIN)/python -m crossearth_sar
	PATH="$(abspath $(BIN)):$$PATH" DS_ACCELERATOR=$(shell $(BIN)/python -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")' 2>/dev/null) deepspeed $(RANKS_FLAG) train/cpt.py $(ARGS)

test: venv
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile -q

clean:
	rm -rf build *.egg-info .pytest_cache .ruff_cache .mypy_cache
