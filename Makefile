# `make` alone says what can be made.

VENV ?= .venv
# What was asked for when the environment was made is remembered, so that `make venv TORCH=...` need not be repeated.
-include $(VENV)/options.mk
PYTHON ?=
TORCH ?=
INDEX_URL ?=
PIP_FLAGS ?=
PYTEST_FLAGS ?=
DEB_ARCH ?=
DEB_PYTHON ?=
DEB_WHEELHOUSE ?=

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo test check deb lint mosquitto sshd clean FORCE

# A file's tests stay together: what its fixtures start is started once. The longest is one test of a file, so that
# files with few tests must not come last.
WORKERS := --numprocesses=logical --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

INSTALLED := $(VENV)/installed
BIN := $(VENV)/bin

define OPTIONS
PYTHON ?= $(PYTHON)
TORCH ?= $(TORCH)
INDEX_URL ?= $(INDEX_URL)
PIP_FLAGS ?= $(PIP_FLAGS)
endef
export OPTIONS
ifneq ($(file <$(VENV)/options.mk),$(OPTIONS))
$(INSTALLED): FORCE
endif

help: ## Say what can be made
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16
	@echo
	@echo "  PYTHON=python3.12        make the environment anew with this interpreter (3.10 or newer)"
	@echo "  TORCH=2.9.1              another torch than the one in constraints.txt"
	@echo "  INDEX_URL=https://...    a package index to look in as well: of CPU, CUDA or Jetson builds of torch"
	@echo "  PIP_FLAGS=...            anything else for pip, such as --index-url or --find-links"
	@echo "  PYTEST_FLAGS='-k name'   for pytest, in make test"
	@echo "  DEB_ARCH=arm64           make deb for this architecture: amd64 or arm64"
	@echo "  DEB_PYTHON=3.12          make deb for systems with this Python: 3.10, 3.11 (Debian 12), 3.12 or 3.13"
	@echo "  DEB_WHEELHOUSE=wheels    make deb with the wheels in this directory instead of fetching them"

venv: $(INSTALLED) ## Set up everything for development in .venv

$(INSTALLED): pyproject.toml constraints.txt
	tools/make_venv.sh $(VENV) $(PYTHON)
	sed '$(if $(TORCH),s/^torch==.*/torch==$(TORCH)/)' constraints.txt > $(VENV)/constraints.txt
	$(BIN)/python -m pip install $(if $(INDEX_URL),--extra-index-url $(INDEX_URL)) $(PIP_FLAGS) \
		-c $(VENV)/constraints.txt -e '.[dev]'
	@printf '%s\n' "$$OPTIONS" > $(VENV)/options.mk
	@touch $@

demo: $(INSTALLED) ## Run a whole federation on this machine: broker, aggregator and agents
	$(BIN)/edgefed demo

test: $(INSTALLED) mosquitto sshd lint ## Check everything and run every test
	$(BIN)/pytest $(WORKERS) $(PYTEST_FLAGS)

check: $(INSTALLED) lint ## Check style, types and layers, without the tests

deb: $(INSTALLED) ## Build the agent's Debian package in dist
	$(BIN)/python -m tools.debian.build $(if $(DEB_ARCH),--architecture $(DEB_ARCH)) \
		$(if $(DEB_PYTHON),--python $(DEB_PYTHON)) $(if $(DEB_WHEELHOUSE),--wheelhouse $(DEB_WHEELHOUSE)) \
		--pip-flags="$(PIP_FLAGS)" dist

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

mosquitto:
	@PATH="$$PATH:/usr/sbin:/usr/local/sbin" command -v mosquitto >/dev/null || \
		tools/apt_install.sh mosquitto "the tests start a real MQTT broker"

sshd:
	@PATH="$$PATH:/usr/sbin:/sbin" command -v sshd >/dev/null || \
		tools/apt_install.sh openssh-server "the tests log in to a real sshd of their own" ssh

clean: ## Remove what building and testing leave behind; the environment stays
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
