# Every target makes what it needs: a virtual environment in .venv, the packages in it, then its own work.
#
#   make demo    fine-tune three small nets on the digits and write a report and a submission into ./demo (elsewhere: OUT=…)
#   make test    everything that CI checks
#   make lab     JupyterLab on a copy of the chapters in .lab: run and change them at will
#   make edit    JupyterLab on the chapters themselves, for those who change them
#   make tidy    after that: export the library, clean the notebooks, write the index and the README
#   make bench   run the benchmarks in nbs/bench
#   make docs    the chapters as a site of plain files in _docs
#   make clean   remove what can be made again; results stay, and so does .venv
#
# Another Python than python3: make demo PYTHON=python3.12

PYTHON ?= python3
OUT    ?= demo
BIN    := .venv/bin
FACTS  := settings.ini setup.py pyproject.toml
BENCH  := $(sort $(wildcard nbs/bench/*.ipynb))
PIP    := PYTHONWARNINGS=ignore $(BIN)/python -m pip install $(if $(shell [ -t 2 ] && echo tty),,-q)

export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

.PHONY: help install demo test lab edit tidy bench docs clean
.NOTPARALLEL:
.DELETE_ON_ERROR:

help:
	@sed -n 's/^#   //p' Makefile

# A stamp says what is complete. None of them counts when the Python in .venv is gone or the checkout has moved.
ifneq ($(shell $(BIN)/python -c '' 2>/dev/null && cat .venv/.made 2>/dev/null),$(CURDIR))
$(shell rm -f .venv/.made .venv/.core .venv/.dev)
endif

.venv/.made:
	@$(PYTHON) -c 'import sys; sys.exit(not (3,10) <= sys.version_info < (3,14))' 2>/dev/null || { \
	  echo "vision_ft needs Python 3.10 to 3.13, and $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo 'not there'). Fix: install one and name it, as in 'make $(MAKECMDGOALS) PYTHON=python3.12'." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments. Fix: 'apt-get install python3-venv'." >&2; exit 1; }
	@grep -qsF '$(CURDIR)/.venv/' $(BIN)/pip && $(BIN)/pip --version >/dev/null 2>&1 || { rm -rf .venv && $(PYTHON) -m venv .venv; }
	@$(PIP) --upgrade pip
	@echo '$(CURDIR)' > $@

.venv/.core: .venv/.made $(FACTS)
	@echo 'Installing vision_ft and what it needs into .venv. The first time this takes minutes and several GB, most of it torch.'
	@$(PIP) -e .
	@touch $@

.venv/.dev: .venv/.made $(FACTS)
	@echo 'Installing vision_ft and its tools into .venv. The first time this takes minutes and several GB, most of it torch.'
	@$(PIP) -e '.[dev]'
	@touch .venv/.core $@

install: .venv/.dev

demo: .venv/.core
	@$(BIN)/vision-ft demo --out '$(OUT)'

test: export OMP_NUM_THREADS = 1
test: export HF_HUB_OFFLINE = 1
test: export YOLO_OFFLINE = true
test: .venv/.dev
	@$(BIN)/python .ci/instep.py
	@$(BIN)/python .ci/tidy.py --check
	@$(BIN)/python .ci/readme.py --check
	@echo 'Running every chapter from top to bottom'
	@$(BIN)/nbdev-test --n-workers 2 --timing || { \
	  echo "A chapter fails, its error stands above. Fix: 'make edit', run that chapter from the top, then 'make tidy'." >&2; exit 1; }
	@$(BIN)/python -m pytest -q

JUPYTER := $(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) --LabApp.default_url=/lab/tree/nbs/index.ipynb

lab: .venv/.dev
	@$(BIN)/python .ci/lab.py
	@$(JUPYTER) --ServerApp.root_dir='$(CURDIR)/.lab' $(LAB)

edit: .venv/.dev
	@$(JUPYTER) --ServerApp.root_dir='$(CURDIR)' $(LAB)

tidy: .venv/.dev
	@$(BIN)/nbdev-export
	@$(BIN)/nbdev-clean
	@$(BIN)/python .ci/tidy.py
	@$(BIN)/python .ci/readme.py

bench: export PYTHONWARNINGS = ignore::FutureWarning,ignore::DeprecationWarning
bench: $(if $(BENCH),.venv/.dev)
	@$(if $(BENCH),,echo 'There are no benchmarks yet: nbs/bench holds no notebook.')
	@set -e; for nb in $(BENCH); do echo "$$nb"; $(BIN)/jupyter execute --inplace "$$nb"; $(BIN)/nbdev-clean --fname "$$nb"; $(BIN)/python .ci/tidy.py "$$nb"; done

docs: .venv/.dev
	@$(BIN)/python .ci/docs.py

clean:
	rm -rf _docs _proc build dist *.egg-info .pytest_cache .hypothesis
	find . -name .venv -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
