# From a fresh clone:  make demo  (one aligned scan)   make test  (all tests)
# With another interpreter:  make demo PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --quiet --disable-pip-version-check
INSTALLED := $(VENV)/.installed
JUDGES := $(VENV)/.judges
# A long training run, `long` or `accurate`: its latest checkpoint, and the copy that is committed to the project.
RECIPE ?= long
LAST := runs/$(RECIPE)/last.pt
KEPT := train/recipes/$(RECIPE).pt
START := runs/shipped.pt
# Validation pairs, if measurements/validation/training_list.py has written them; otherwise generated ones.
LIST := runs/validation/pairs.csv
VALIDATED = $(if $(wildcard $(LIST)), --validation $(LIST) --validation-pairs 10)
THREADS ?= 1
GOES_ON = $(if $(wildcard $(LAST)), --resume,$(if $(wildcard $(KEPT)), --resume-from $(KEPT), --start $(START)))
FROM_NOTHING = $(if $(wildcard $(LAST) $(KEPT)),,$(START))
WORKERS ?= 2
TORCH_FOR_CPU := https://download.pytorch.org/whl/cpu

.PHONY: help demo test quick check warm train-on train-keep clean

help:
	@echo "make demo    register a sample pair with a known transform, print the error"
	@echo "make test    run all tests, on two cores at once (WORKERS=0: one after the other)"
	@echo "make quick   run the most important tests, in about a minute"
	@echo "make check   run ruff and mypy"
	@echo "make train-on    start or continue the long training run; Ctrl-C saves (THREADS=1 RECIPE=long)"
	@echo "make train-keep  copy its state to $(KEPT), to be committed"
	@echo "make clean   remove $(VENV)/, demo/ and caches"
	@echo "All install their requirements into $(VENV)/ first. Another interpreter: make demo PYTHON=python3.12"

demo: warm
	@$(RUN) cli.py demo

test: warm $(JUDGES)
	@$(RUN) -m pytest -n $(WORKERS) --dist loadfile

quick: warm $(JUDGES)
	@$(RUN) -m pytest -n $(WORKERS) --dist loadfile -m "not slow"

check: $(INSTALLED)
	@$(PIP) install "ruff>=0.14,<1" "mypy>=1.18,<3"
	@$(RUN) -m ruff check .
	@$(RUN) -m mypy

$(INSTALLED): requirements.txt requirements-runtime.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null || { \
	    echo "$(PYTHON): got '$$($(PYTHON) --version 2>&1 | head -n 1)', expected Python 3.11 or later;" \
	         "name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(RUN) -m pip --version >/dev/null 2>&1 || { \
	    echo "Creating $(VENV)/ with $$($(PYTHON) --version)"; \
	    $(PYTHON) -m venv --clear $(VENV) >/dev/null || { \
	        echo "$(PYTHON): cannot create a virtual environment, expected the modules venv and ensurepip;" \
	             "on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }; }
	@if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null; then \
	    echo "Installing PyTorch's CPU build"; \
	    $(PIP) install --retries 0 --index-url $(TORCH_FOR_CPU) "$$(grep '^torch==' requirements.txt)" 2>/dev/null || \
	        echo "  not available from $(TORCH_FOR_CPU); installing the default build"; fi
	@echo "Installing requirements.txt (a few minutes the first time)"
	@$(PIP) install -r requirements.txt
	@touch $@

# Other tools that tests use as references.
$(JUDGES): requirements-tests.txt $(INSTALLED)
	@echo "Installing requirements-tests.txt"
	@$(PIP) install -r requirements-tests.txt
	@touch $@

# Prints its progress; compiled code is kept in the user's cache folder, not in $(VENV).
warm: $(INSTALLED)
	@$(RUN) cli.py warm-up

# Continues from its last checkpoint, else from the committed one, else starts. `exec` lets signals reach the process.
train-on: $(INSTALLED) $(FROM_NOTHING)
	@exec nice -n 19 $(RUN) cli.py train --recipe train/recipes/$(RECIPE).toml --threads $(THREADS)$(VALIDATED)$(GOES_ON)

# The start of the long run: the weights that ship.
$(START): $(INSTALLED)
	@$(RUN) -m export.from_engines --output $@

train-keep:
	@cp $(LAST) $(KEPT)
	@ls -l $(KEPT)

clean:
	rm -rf $(VENV) demo .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
