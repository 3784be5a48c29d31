# make smoke     train the toy language on the CPU, in about a minute
#                TORCH_INDEX=URL fetches PyTorch from another index than PyPI, such as that of its CPU builds (pytorch.org names it);
#                where .venv is there already, `make clean` first, and before another PYTHON too
# make test      the tests that CI runs; they need no GPU and no data set
# make test-fast those of them that start no processes and train no whole runs
# make test-all  the longer matrix too
# make lint      ruff and mypy

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
SMOKE_DIR ?= runs/smoke
TORCH := $(shell grep '^torch==' constraints.txt)
TORCH_FROM := PyPI (on Linux its CUDA build, several GB; TORCH_INDEX=URL names another index)
ifneq ($(TORCH_INDEX),)
TORCH_FROM := $(TORCH_INDEX)
endif

.PHONY: install smoke test test-fast test-all lint clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("this Python is %d.%d, and 3.11 or later is needed: name one with PYTHON=python3.12" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	@echo "fetching $(TORCH) from $(TORCH_FROM) into $(VENV)"
	$(BIN)/pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[moses,bpe]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,export,tensorboard,trackio,report,wandb-report,moses,bpe]'
	touch $@

smoke: $(VENV)/.installed
	@test ! -e "$(SMOKE_DIR)" -o -e "$(SMOKE_DIR)/.lock" || rmdir -- "$(SMOKE_DIR)" 2>/dev/null || { echo "$(SMOKE_DIR) is there and is no run: name another SMOKE_DIR" >&2; exit 2; }
	rm -rf -- "$(SMOKE_DIR)"
	$(BIN)/accelerate launch --config_file configs/accelerate/cpu.yaml --num_cpu_threads_per_process 1 scripts/train.py --config configs/smoke.yaml --train.run_dir "$(SMOKE_DIR)"

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 3 --dist loadscope --no-loadscope-reorder

test-fast: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m 'not slow and not system'

test-all: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 3 --dist loadscope --no-loadscope-reorder -m ''

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV)
