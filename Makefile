# medxai: two commands, `make demo` and `make test`; both set themselves up and need no activated environment.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ONLY ?=
CONFIG ?= configs/demo.yaml

export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS := 180
export PREFECT_HOME ?= $(CURDIR)/.prefect
export OMP_NUM_THREADS ?= 2
export MPLBACKEND := Agg
export PIP_DISABLE_PIP_VERSION_CHECK := 1
PIP := $(BIN)/python -m pip install -q --no-compile

.PHONY: help demo test pytest lint parity viewer bench serve clean lock

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

demo: $(VENV)/.core $(if $(MEDXAI_DATA),$(VENV)/.video) ## explain phantom studies end to end and print where the results are
	$(BIN)/python -m sample_cases.demo

test: lint pytest ## lint and run the tests (MEDXAI_DATA=... adds the real images, MEDXAI_SLOW=1 slow ones, =all the longest too)

# As many processes as the smallest machine of CI has cores, of one thread each: more threads only wait for each other.
pytest: $(VENV)/.dev $(VENV)/.apt $(if $(MEDXAI_SLOW),$(VENV)/.browser)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m $(if $(filter all,$(MEDXAI_SLOW)),"slow or not slow",$(if $(MEDXAI_SLOW),"not longest","not slow and not longest"))

lint: $(VENV)/.dev ## ruff, mypy --strict, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

parity: .venv-parity/.ready ## compare with Captum, grad-cam, TorchCAM, MONAI, Zennit and Quantus, in an environment beside .venv
	MEDXAI_REQUIRE_PEERS=1 .venv-parity/bin/python -m pytest -q tests/parity

viewer: $(VENV)/.dev $(VENV)/.apt $(VENV)/.browser ## open every object in OHIF and write docs/images/viewer_*.png
	MEDXAI_VIEWER_PICTURES=docs/images $(BIN)/python -m pytest -q tests/viewer

bench: $(VENV)/.dev ## measure and write docs/benchmarks.md and .json (ONLY=name for one entry)
	$(BIN)/python -m tests.bench $(ONLY)

serve: $(VENV)/.core ## Prefect server on 127.0.0.1 and the nightly batch of CONFIG
	$(BIN)/python -m flows.serve $(CONFIG)

clean: ## remove generated files; keeps the environment
	rm -rf .demo .prefect .pytest_cache .mypy_cache .ruff_cache .hypothesis sample_cases/generated build *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

lock: ## resolve pyproject.toml anew and rewrite constraints.txt
	$(PYTHON) docs/lock.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: constraints.txt pyproject.toml | $(VENV)/bin/python
	@echo "Setting up $(VENV) (about two minutes the first time) ..."
	@sed '/^# dev/,$$d' constraints.txt > $(VENV)/core.txt
	@$(PIP) --no-deps -r $(VENV)/core.txt 2> >(grep -v "is ignored: it is neither" >&2)
	@$(PIP) --no-deps --no-build-isolation -e . 2> >(grep -v "is ignored: it is neither" >&2)
	@touch $@

# PyAV, for clips of ultrasound; not in the core, since its wheels carry GPL encoders that nothing here uses.
$(VENV)/.video: $(VENV)/.core
	@$(PIP) --no-deps $$(grep '^av==' constraints.txt) 2> >(grep -v "is ignored: it is neither" >&2)
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	@$(PIP) --no-deps -r constraints.txt 2> >(grep -v "is ignored: it is neither" >&2)
	@touch $@

# The peers need torchvision, which MONAI must not see in .venv: an environment that only adds to it.
.venv-parity/.ready: constraints-parity.txt $(VENV)/.dev
	@$(PYTHON) -m venv .venv-parity
	@echo "import site; site.addsitedir('$(CURDIR)/$(VENV)/lib/python3.11/site-packages')" > .venv-parity/lib/python3.11/site-packages/medxai_base.pth
	@.venv-parity/bin/python -m pip install -q --no-compile --no-deps -r constraints-parity.txt 2> >(grep -v "is ignored: it is neither" >&2)
	@touch $@

# Orthanc, dcmtk, a C compiler for its loopback shim, and PixelMed's validator of reports: installed when that is
# possible, else named.
$(VENV)/.apt: | $(VENV)/bin/python
	@missing=""; \
	command -v Orthanc >/dev/null && [ -e /usr/share/orthanc/plugins/libOrthancDicomWeb.so ] || missing="orthanc orthanc-dicomweb orthanc-gdcm"; \
	command -v storescp >/dev/null || missing="$$missing dcmtk"; \
	ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || missing="$$missing postgresql"; \
	command -v gcc >/dev/null || missing="$$missing gcc libc6-dev"; \
	[ -e /usr/share/java/pixelmed.jar ] || missing="$$missing pixelmed-apps libpixelmed-java"; \
	command -v java >/dev/null || missing="$$missing default-jre-headless"; \
	if [ -z "$$missing" ]; then touch $@; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null && touch $@; \
	else echo "PACS tests will be skipped; to run them: apt-get install $$missing"; fi

# A browser and npm, from which tests/viewer fetches OHIF.
$(VENV)/.browser: | $(VENV)/bin/python $(VENV)/.apt
	@missing=""; \
	[ -x /usr/bin/chromium ] || missing="chromium"; \
	command -v npm >/dev/null || missing="$$missing nodejs npm"; \
	if [ -z "$$missing" ]; then touch $@; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null && touch $@; \
	else echo "viewer tests will be skipped; to run them: apt-get install $$missing"; fi
