# `make` prints the verbs. Every verb does the set-up it needs:
#
#   make demo                           in .venv, made on first use with packages downloaded by pip
#   make demo PYTHON=/path/to/python    if that one has torch: nothing is downloaded or installed,
#                                       the extension is built in this folder
#
# Another PYTHON without torch is the interpreter that .venv is made with.

PYTHON ?= python3
VENV ?= .venv
OUT ?= runs/demo
NATIVE := setup.py $(wildcard csrc/*.cpp csrc/*/*)
CHECK := tools/check_environment.py

# A default PYTHON is never used in place: it would hide that development tools are missing.
ifneq ($(origin PYTHON),file)
  IN_PLACE := $(shell $(PYTHON) $(CHECK) torch && echo yes)
endif

ifeq ($(IN_PLACE),yes)
  READY := build/ready
  RUN := PYTHONPATH="$(CURDIR)/python:$(CURDIR)" $(PYTHON)
  # Another interpreter than last time builds again.
  ifneq ($(shell cat $(READY) 2>/dev/null),$(PYTHON))
    .PHONY: $(READY)
  endif
else
  READY := $(VENV)/ready
  RUN := $(VENV)/bin/python
endif

.PHONY: help demo test test-cuda test-faults test-sanitized test-compilers test-aarch64 bench lint format typecheck clean
help:
	@echo "make demo       distil scikit-learn's digits, made long-tailed, into $(OUT)/report.html"
	@echo "make test       lint, typecheck and run the tests"
	@echo "make test-faults     kill runs, damage files and fill disks (takes minutes)"
	@echo "make test-sanitized  run the operator tests under address and undefined-behaviour sanitizers"
	@echo "make test-compilers  run the kernels' C++ test with GCC and every Clang from 14 on"
	@echo "make test-aarch64  run it for 64-bit ARM, by a cross compiler and QEMU where both are there"
	@echo "make test-cuda  run the tests that need a GPU"
	@echo "make bench      time the operators against plain PyTorch"
	@echo "make lint       check style with ruff"
	@echo "make format     rewrite Python and C++ sources in the project's style"
	@echo "make typecheck  check types with mypy"
	@echo "make clean      remove build products and caches; keeps $(VENV) and runs"
	@echo
	@echo "PYTHON=/path/to/python uses an interpreter that has torch as it is, without a download."

demo: $(READY)
	$(RUN) -m ltdd distill --data digits --imbalance-factor 50 --preset demo --out $(OUT)

# In as many processes as there are cores, up to four: every test has one thread.
test: lint typecheck $(READY)
	$(RUN) -m pytest -n auto --maxprocesses 4 --dist worksteal

# -s shows the figures that the tests print.
test-faults: has-tools $(READY)
	$(RUN) -m pytest -s -m "slow or not slow" tests/faults

test-sanitized: has-tools $(READY)
	$(RUN) tools/test_sanitized.py

test-compilers: has-tools $(READY)
	$(RUN) -m pytest -m "slow or not slow" tests/cpu_kernels/test_compilers.py

test-aarch64: has-tools $(READY)
	$(RUN) -m pytest -m "slow or not slow" tests/cpu_kernels/test_aarch64.py

test-cuda: has-tools $(READY)
	$(RUN) -m pytest -m cuda

bench: $(READY)
	$(RUN) -m benchmarks

lint: has-tools
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

typecheck: has-tools
	$(RUN) -m mypy

format: has-tools
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .
	$(RUN) -c "import clang_format; clang_format.clang_format()" -i $(filter %.h %.cpp %.cu %.cuh,$(NATIVE))

# Complains before anything is built; in .venv the tools come with the installation.
.PHONY: has-tools
has-tools: $(if $(IN_PLACE),,$(READY))
	@$(RUN) $(CHECK) test

# A changed pyproject.toml (or no stamp) installs; changed C++ only builds what it must.
$(VENV)/ready: pyproject.toml $(NATIVE)
	@$(PYTHON) $(CHECK) venv
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(if $(filter pyproject.toml,$?),$(INSTALL),$(RUN) setup.py build_ext --inplace)
	@touch $@

define INSTALL
$(RUN) -m pip install "setuptools>=77" wheel ninja "torch>=2.11" torchvision
$(RUN) -m pip install --no-build-isolation -e ".[dev]"
endef

# egg_info: the version that the package reports is read from it.
build/ready: pyproject.toml $(NATIVE)
	@$(PYTHON) $(CHECK) run
	$(PYTHON) setup.py egg_info build_ext --inplace
	@mkdir -p build && echo "$(PYTHON)" > $@

clean:
	rm -rf build *.egg-info ltdd_ext/*.so $(VENV)/ready
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
