# Set-up and the usual commands. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
DEMO_WORKDIR ?= runs/demo

.PHONY: demo test check format clean

demo: $(VENV)/.run
	$(RUN) -m kws_jax.main --config=configs/autokws.py:demo --workdir=$(DEMO_WORKDIR)

test: $(VENV)/.dev
	$(RUN) -m pytest -n 2 --dist loadfile

check: $(VENV)/.dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: $(VENV)/.dev
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:
	rm -rf $(VENV)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "kws_jax needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Give another: make PYTHON=python3.12 …"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@ $(VENV)/.run
