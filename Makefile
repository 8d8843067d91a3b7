# make train ARGS="model=vgg schedule=adabatch"     install what is missing, then train
# make test                                         install what is missing, then the suite without slow tests
# make help                                         the other targets
#
# Needs make, git and a Python with pip. Everything is installed inside the checkout: uv in .tools (where the
# machine has none), the environment in .venv. A .venv that is already there is used as it is.

.POSIX:
.SUFFIXES:
SHELL = /bin/sh
PYTHON ?= python3
ARGS =
PYTEST_ARGS =

PY = .venv/bin/python
DONE = .venv/adabatch-installed
# Paths are relative throughout, so that a checkout whose path has spaces works too.
FIND_UV = uv=$$(command -v uv || true); [ -n "$$uv" ] || uv=.tools/bin/uv
SUPPORTED = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
# One thread unless the user says otherwise: tests are small, and idle OpenMP threads that spin slow a busy machine.
# As many processes as cores, 8 at the most: each imports torch (0.5 GB).
TEST = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(PY) -m pytest -n auto --maxprocesses=8 --dist worksteal

.PHONY: help install train test test-all lint bench bench-check constraints clean
help:
	@echo 'make train [ARGS="model=vgg schedule=adabatch"]  train; ARGS are Hydra overrides'
	@echo 'make test [PYTEST_ARGS="-k stream"]              the suite without slow, SLURM and GPU tests'
	@echo 'make test-all                                    every test; SLURM and GPU tests skip where there is none'
	@echo 'make lint                                        ruff'
	@echo 'make bench                                       speed against peers, to outputs/bench/*.json; an hour'
	@echo 'make bench-check                                 the cheap ratios of it against benchmarks/expected.json'
	@echo 'make install                                     only the environment, in .venv'
	@echo 'make constraints                                 write constraints.txt anew from pyproject.toml'
	@echo 'make clean                                       remove .tools, build and test leftovers; keeps .venv, outputs'

install: $(DONE)

train: $(DONE)
	@set -f; .venv/bin/adabatch $(ARGS)

test: $(DONE)
	@$(TEST) -m "not slow and not slurm and not needs_gpu" $(PYTEST_ARGS)

test-all: $(DONE)
	@$(TEST) $(PYTEST_ARGS)

lint: $(DONE)
	@$(PY) -m ruff check .

# The stamp is younger than both files only where the last installation from them went through.
$(DONE): pyproject.toml constraints.txt
	@$(FIND_UV); if [ ! -x "$$uv" ]; then \
	  command -v "$(PYTHON)" >/dev/null || { \
	    echo "make needs Python to fetch uv, and '$(PYTHON)' is not there: install python3, or name one: make PYTHON=/path/to/python3" >&2; \
	    exit 1; }; \
	  echo "fetching uv into .tools"; \
	  if "$(PYTHON)" -m pip --version >/dev/null 2>&1; then pip="$(PYTHON)"; else \
	    "$(PYTHON)" -m venv .tools/pip >/dev/null 2>&1 && pip=.tools/pip/bin/python || { \
	      echo "'$(PYTHON)' has no pip to fetch uv with: install it (Debian: apt-get install python3-pip), or uv itself" >&2; \
	      exit 1; }; \
	  fi; \
	  PIP_USER=0 PIP_ROOT_USER_ACTION=ignore "$$pip" -m pip install -q --disable-pip-version-check --target .tools uv || { \
	    echo "pip could not fetch uv, see above: install uv by hand and run make again" >&2; \
	    exit 1; }; \
	fi
	@$(FIND_UV); if [ -e .venv ]; then \
	  $(PY) -c '$(SUPPORTED)' || { \
	    echo ".venv does not hold a working Python from 3.11 to 3.13: remove it (rm -r .venv) and run make again" >&2; \
	    exit 1; }; \
	elif "$(PYTHON)" -c '$(SUPPORTED)' 2>/dev/null; then \
	  "$$uv" venv -q --python "$$("$(PYTHON)" -c 'import sys; print(sys.executable)')" .venv; \
	else \
	  echo "adabatch needs Python 3.11 to 3.13, and '$(PYTHON)' is not one: asking uv for it" >&2; \
	  "$$uv" venv -q --python '>=3.11,<3.14' .venv || { \
	    echo "uv found no Python 3.11 to 3.13 and could not fetch one: install one and name it: make PYTHON=/path/to/python3.13" >&2; \
	    exit 1; }; \
	fi
	@echo "installing adabatch and what it needs into .venv"
	@$(FIND_UV); "$$uv" pip install -q --python $(PY) -c constraints.txt -e '.[dev]'
	@touch $@

# One after the other, on a machine that does nothing else. On a GPU: sh benchmarks/gpu.sh MINUTES
BENCH = outputs/bench
bench: $(DONE)
	@mkdir -p $(BENCH)
	$(PY) benchmarks/train_loop.py --out $(BENCH)/train_loop.json
	$(PY) benchmarks/techniques.py --out $(BENCH)/techniques.json
	$(PY) benchmarks/where.py --out $(BENCH)/where.json
	$(PY) benchmarks/data_path.py --out $(BENCH)/data_path.json
	$(PY) benchmarks/imagenet.py --out $(BENCH)/imagenet.json
	$(PY) benchmarks/startup.py --out $(BENCH)/startup.json
	$(PY) benchmarks/seeds.py --out $(BENCH)/seeds.json
	$(PY) benchmarks/kept.py $(BENCH)/measuring.json benchmarks/measuring.py
	$(PY) benchmarks/kept.py $(BENCH)/distributed.json benchmarks/distributed.py
	$(PY) benchmarks/kept.py $(BENCH)/ghost_norm.json benchmarks/ghost_norm.py

# A warning where a ratio has dropped by half; it never fails by a figure.
bench-check: $(DONE)
	@$(PY) benchmarks/train_loop.py --models resnet --batches 128 --only reference,fp32,bf16 \
	  --seconds 1.5 --expect benchmarks/expected.json

# No hosts, no hashes: the file serves uv, pip and conda, from any mirror. NVIDIA's libraries are left out: the torch
# build that is installed names their versions itself, and other CUDA versions of the same torch name others.
constraints: $(DONE)
	@$(FIND_UV); "$$uv" pip compile -q pyproject.toml --all-extras --universal --python-version 3.11 --upgrade \
	  --no-header --no-annotate --no-emit-index-url -o .venv/pins.txt >/dev/null
	@{ sed '/^#/!d' constraints.txt; grep -vE '^(nvidia|cuda)-' .venv/pins.txt; } > .venv/constraints.txt
	@mv .venv/constraints.txt constraints.txt

clean:
	rm -rf .tools build dist .pytest_cache .ruff_cache .hypothesis
	find adabatch tests -name __pycache__ -type d -prune -exec rm -rf {} +
