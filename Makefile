# `make demo` and `make test` work from a fresh checkout with Python 3.10 to 3.13 and no GPU.
PYTHON ?= python3
VENV := .venv
JOBS ?= 2
RUN := $(VENV)/bin
INSTALL := $(RUN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e

.PHONY: demo test hosts slow gpu lint clean

demo: $(VENV)/standalone.installed
	$(RUN)/onestep-sr upscale demo/photo.png demo/sign.png -o demo-output --compare --overwrite

# One thread per job: at the size of the tests, more threads cost more time than they save.
test: lint
	OMP_NUM_THREADS=1 $(RUN)/python -m pytest -n $(JOBS) --dist loadfile -m "not host and not slow and not gpu"

# What the hosts on this machine are needed for, one after the other, and what takes minutes.
hosts slow: $(VENV)/dev.installed
	OMP_NUM_THREADS=1 $(RUN)/python -m pytest -m $(@:hosts=host)

# What only a CUDA GPU can show: tests, seconds and memory, in gpu-results/, within 8 minutes.
gpu: $(VENV)/dev.installed
	PYTHONPATH=tests $(RUN)/python benchmarks/gpu.py

lint: $(VENV)/dev.installed
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/basedpyright

$(VENV)/%.installed: pyproject.toml constraints.txt
	test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) ".[$*]"
	touch $@

clean:
	rm -rf $(VENV) demo-output gpu-results build *.egg-info
