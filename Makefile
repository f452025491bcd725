# `make demo` and `make test` work from a fresh checkout with Python 3.10 to 3.13 and no GPU.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
INSTALL := $(RUN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e

.PHONY: demo test lint clean

demo: $(VENV)/standalone.installed
	$(RUN)/onestep-sr upscale demo/photo.png -o demo-output --compare --overwrite

test: lint
	$(RUN)/python -m pytest

lint: $(VENV)/dev.installed
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/basedpyright

$(VENV)/%.installed: pyproject.toml constraints.txt
	test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) ".[$*]"
	touch $@

clean:
	rm -rf $(VENV) demo-output build *.egg-info
