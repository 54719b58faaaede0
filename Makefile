# Each target does the set-up it needs; a second call finds it done.
#
#   make cpt     pre-train the tiny model on simulated SAR and end with numbers and pictures in runs/cpt;
#                with real images below REAL=../shared, the report has their scores too
#   make test    lint, types, tests
#   make bench   the MoE layer, its kernels and the model side by side with their peers; reports in runs/bench
#   make bench22 the 22 benchmarks in miniature, on simulated data; make ablations: one axis at a time beside it
#   make bench-real  simple methods, saved models and equal-time contenders on real images below REAL=../shared
#   make gpu-check   on a machine with a GPU: tests, sanitizer, benchmarks and profile in nine minutes
#   make venv    only the environment
#
# A stopped make cpt goes on where it was; remove runs/cpt to start anew. ARGS takes what train/cpt.py does:
# make cpt ARGS="--set steps=100 output=runs/short". OUT says where bench and gpu-check write. GPU_PYTHON=python3
# runs gpu-check under an interpreter as it is, without an environment; PACK=1 makes its report few files.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(abspath $(VENV))/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# One rank per GPU; two on a machine without one, so that expert parallelism is at work there too.
RANKS ?= $(shell $(BIN)/python -c 'import torch; print(torch.cuda.device_count() or 2)')

.PHONY: venv cpt test weights bench bench22 ablations bench-real gpu-check

venv: $(VENV)/.installed

# torch comes first and by its pinned version, so that nothing else pulls a second, larger build of it; then
# DeepSpeed without build isolation, which would fetch a torch of its own to look at.
$(VENV)/.installed: pyproject.toml setup.py constraints.txt $(wildcard csrc/*)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip setuptools wheel
	$(PIP) torch numpy pybind11
	DS_BUILD_OPS=0 $(PIP) --no-build-isolation -e '.[train,triton,bench,geo,dev]'
	touch $@

cpt: venv
	$(BIN)/python -m crossearth_sar
	$(BIN)/deepspeed --num_accelerators $(RANKS) train/cpt.py --resume $(ARGS)
	$(BIN)/python -m bench.experiments.real.after_training --real "$(REAL)" $(ARGS)

test: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

BENCH_OUT = $(or $(OUT),runs/bench)

bench: venv
	$(BIN)/python -m bench.speed.bench_moe_layer --out "$(BENCH_OUT)/moe-layer"
	$(BIN)/python -m bench.speed.roofline "$(BENCH_OUT)/moe-layer" --contenders ours dense
	$(BIN)/python -m bench.speed.bench_grouped_gemm --out "$(BENCH_OUT)/grouped-gemm"
	$(BIN)/python -m bench.speed.bench_model --out "$(BENCH_OUT)/model"
	$(BIN)/python -m bench.speed.profile_layer --out "$(BENCH_OUT)/profile"

# Both go on where they were stopped and share what is finished; their ARGS are those of the scripts:
# make bench22 ARGS="--set steps=1200", make ablations ARGS="--axes gate descriptors".
bench22: venv
	$(BIN)/python -m bench.experiments.bench22 $(if $(OUT),--out "$(OUT)") $(ARGS)

ablations: venv
	$(BIN)/python -m bench.experiments.ablations $(if $(OUT),--out "$(OUT)") $(ARGS)

# make bench-real ARGS="--model runs/cpt/model", ARGS="--in-domain --seeds 0 1 2", ARGS="--few-labels": see the
# script. Pictures stay in runs/bench-real, for most of the images may not be passed on.
REAL ?= ../shared

bench-real: venv
	$(BIN)/python -m bench.experiments.real.bench_real --real "$(REAL)" $(if $(OUT),--out "$(OUT)") $(ARGS)

# The weights that come with the package: some minutes on a CPU.
weights: venv
	$(BIN)/crossearth-sar train --config pretrain_tiny --resume $(ARGS)
	$(BIN)/python -m bench.experiments.ship_weights

gpu-check: $(if $(GPU_PYTHON),,venv)
	PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}" $(or $(GPU_PYTHON),$(BIN)/python) -m bench.speed.gpu_check \
		$(if $(OUT),--out "$(OUT)") $(if $(PACK),--pack)
