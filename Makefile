# `make demo` and `make test` need Python 3.11 or newer, git and make; a C++ compiler is fetched where there is none.
# Everything is installed into .venv, at the versions of constraints.txt; pip's own settings (PIP_*, pip.conf) apply.

PYTHON ?= python3
PYTHONS := $(PYTHON) $(if $(filter file,$(origin PYTHON)),python3.11 python3.12 python3.13 python3.14)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install -q --no-compile --no-build-isolation
COMPILER := $(CURDIR)/$(VENV)/compiler
STYLE := $(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports
TYPES := $(BIN)/pyright --pythonpath $(BIN)/python
SUBMODULES := submodules/diff-gaussian-rasterization submodules/simple-knn

# The name of a stamp is the checksum of what it stands for, so a change of any of it, and nothing else, installs again.
KERNEL_SOURCES = $(shell find $(SUBMODULES) -type f -not -path '*/build/*' -not -path '*.egg-info/*' \
	-not -path '*/__pycache__/*' -not -name '*.so' | LC_ALL=C sort)
KEY := $(shell cat constraints.txt pyproject.toml $(KERNEL_SOURCES) | cksum | cut -d ' ' -f 1)
READY := $(VENV)/ready-$(KEY)
READY_DEV := $(VENV)/ready-dev-$(KEY)

# Bytecode is kept, whatever the shell says: without it every program compiles its libraries anew, ten seconds each time.
unexport PYTHONDONTWRITEBYTECODE

DEMO := output/quickstart

.PHONY: demo test test-matrix soak check format setup setup-dev clean help

demo: $(READY)  ## a prompt to 3D Gaussians, on any machine
	@if grep -qs '"finished": true' $(DEMO)/run.json && ls $(DEMO)/videos/*/*.mp4 >/dev/null 2>&1; then \
		echo "$(DEMO) is finished; to start afresh: rm -r $(DEMO)"; \
	elif ls -d $(DEMO)/checkpoints/iteration_* >/dev/null 2>&1; then \
		$(BIN)/python train.py --opt configs/quickstart.yaml --resume; \
	else \
		$(BIN)/python train.py --opt configs/quickstart.yaml --force; \
	fi
	@for file in $(DEMO)/index.html $$(ls -t $(DEMO)/videos/*/video_rgb_*.mp4 $(DEMO)/test_six_views/*/all_views.png 2>/dev/null); do \
		if test -f "$$file"; then echo "Done. Open $$file in a browser; everything else is in $(DEMO)."; break; fi; \
	done

# The types take a minute of one core, beside the tests, which now and then leave one idle.
test: $(READY_DEV)  ## all checks and all tests, on as many as four cores
	@$(STYLE)
	@$(TYPES) >$(VENV)/types.txt 2>&1 & types=$$!; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal; tests=$$?; \
	wait $$types || tests=1; cat $(VENV)/types.txt; exit $$tests

test-matrix: $(READY_DEV)  ## all tests under other instruction sets, threads and orders: hours
	@$(BIN)/python tests/matrix.py

soak: $(READY_DEV)  ## hours of kills and damaged files (docs/reliability.md)
	@$(BIN)/python -m pytest -m slow tests/faults

check: $(READY_DEV)  ## style, layers and types, without the tests
	@$(STYLE)
	@$(TYPES)

format: $(READY_DEV)  ## put the code into the project's form
	@$(BIN)/ruff check --fix-only --exit-zero .
	@$(BIN)/ruff format .

setup: $(READY)  ## install the program into .venv
setup-dev: $(READY_DEV)  ## and what the tests need

$(READY):
	@found=; for python in $(PYTHONS); do \
		$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && found=$$python && break; \
	done; \
	if test -z "$$found"; then \
		echo "Python 3.11 or newer is needed; $(PYTHON) is: $$($(PYTHON) --version 2>&1 | head -n 1). Install one, or name it: make PYTHON=/path/to/python" >&2; \
		exit 1; \
	fi; \
	if ! $(PIP) --version >/dev/null 2>&1; then rm -rf $(VENV) && $$found -m venv $(VENV); fi
	@rm -rf build $(addsuffix /build,$(SUBMODULES))
	@echo "Installing PyTorch into $(VENV): 1.5 GB or more in all; pip prints nothing meanwhile, which can last several minutes"
	@$(INSTALL) -c constraints.txt setuptools torch
	@echo "Installing the program and its other packages"
	@$(INSTALL) -c constraints.txt .
	@needed=$$($(BIN)/python submodules/diff-gaussian-rasterization/compiler.py 2>/dev/null); \
	if test -n "$$needed"; then \
		if $(INSTALL) -c constraints.txt --target $(COMPILER) $$needed; then \
			echo "No C++ compiler works here: $$needed compiles the kernels, and is then removed again"; \
		else \
			echo "No C++ compiler works here and $$needed cannot be fetched: everything runs, but the renderer takes 70 to 332 times as long (docs/rasterizer.md). With a compiler, or the network, \`make clean demo\` builds the kernels" >&2; \
		fi; \
	fi
	@trap 'rm -rf $(COMPILER)' EXIT; \
	PYTHONPATH=$(COMPILER) ZIG_GLOBAL_CACHE_DIR=$(COMPILER)/cache ZIG_LOCAL_CACHE_DIR=$(COMPILER)/cache \
		$(INSTALL) --no-deps --force-reinstall $(addprefix ./,$(SUBMODULES))
	@rm -f $(VENV)/ready-*
	@touch $@

$(READY_DEV): $(READY)
	@echo "Installing what the tests need"
	@$(INSTALL) -c constraints.txt .[dev]
	@touch $@

clean:  ## remove what `make` built; runs in output/ stay
	rm -rf $(VENV) build dreammapping.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf $(foreach folder,$(SUBMODULES),$(folder)/build $(folder)/*.egg-info)

help:  ## these words
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/\1 \2/p' Makefile | while read -r name words; do printf '%-12s %s\n' "$$name" "$$words"; done
