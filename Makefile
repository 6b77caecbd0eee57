# Every target sets up what it needs in .venv. `make help` lists them.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
XLA_VENV ?= .venv-xla
# Which torch to install first. On a machine without a GPU, the small CPU build:
#   make quickstart PIP_ARGS="--index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.13.0
PIP_ARGS ?=
# The last release of torch_xla with the torch it was built for, and what its scan needs under SPMD.
XLA_TORCH := torch==2.9.0
XLA := $(XLA_TORCH) torch_xla==2.9.0 jax==0.7.1 torchax==0.0.7
# Threads that wait must sleep: where another program shares the cores, spinning ones starve those they wait for, and a
# training step takes 40 times as long. On idle cores it costs a fifth.
export OMP_WAIT_POLICY ?= passive

.PHONY: help setup quickstart rehearse test test-xla lint format bench tensorboard clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.ready ## install everything into .venv

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q $(PIP_ARGS) "$(TORCH)"
	$(VENV)/bin/python -m pip install -q -e ".[dev]"
	touch $@

quickstart: $(VENV)/.ready ## train a small diffusion coder on real code, then fill in a function body with it
	$(VENV)/bin/python main.py fit --config configs/quickstart.yaml
	$(VENV)/bin/python -m coda.generate --model $$(ls -td runs/quickstart/*/export | head -1) \
		--prompt $$'    def __init__(self, name, value):\n' --suffix $$'\n        self.value = value\n' --max_new_tokens 16

# Stage 1 -> 2 -> 3a -> 3b on a small model, each from the weights of the last, in a new folder under runs/rehearsal.
STEPS ?= 500
RUN := runs/rehearsal/$(shell date +%Y%m%d-%H%M%S)
FIT = $(VENV)/bin/python main.py fit --config $(1).yaml --config rehearsal.yaml --trainer.max_steps $(STEPS) \
	--trainer.logger.init_args.save_dir $(RUN) --export.folder $(RUN)/$(1)/export
FROM = --model.init_from $(RUN)/$(1)/export --data.init_args.tokenizer $(RUN)/$(1)/export

rehearse: $(VENV)/.ready ## all four stages on a small model, seven corpora and function bodies, then a sample
	$(call FIT,stage1) --data configs/data/embedded.yaml
	$(call FIT,stage2) $(call FROM,stage1)
	$(call FIT,stage3a) $(call FROM,stage2)
	$(call FIT,stage3b) $(call FROM,stage3a)
	$(VENV)/bin/python -m coda.generate --model $(RUN)/stage3b/export --chat --max_new_tokens 48 \
		--prompt $$'Complete the function.\ndef close(self):\n    """Close the file and release its resources."""'

test: $(VENV)/.ready ## run all tests
	$(VENV)/bin/python -m pytest

$(XLA_VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(XLA_VENV)
	$(XLA_VENV)/bin/python -m pip install -q $(PIP_ARGS) "$(XLA_TORCH)"
	$(XLA_VENV)/bin/python -m pip install -q $(XLA) -e ".[dev]"
	touch $@

test-xla: $(XLA_VENV)/.ready ## run the TPU code on XLA devices of the CPU, in an environment of its own
	$(XLA_VENV)/bin/python -m pytest tests/xla tests/model/test_xla_decoding.py

lint: $(VENV)/.ready ## ruff and the type checker
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/.ready ## let ruff format the code
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(VENV)/.ready ## measure speed and memory, and rewrite the tables of benchmarks/RESULTS.md
	$(VENV)/bin/python -m benchmarks

tensorboard: $(VENV)/.ready ## watch the curves and samples of all runs
	$(VENV)/bin/tensorboard --logdir runs

clean: ## remove the environment and caches of tools, not runs
	rm -rf $(VENV) $(XLA_VENV) .pytest_cache .ruff_cache .mypy_cache *.egg-info
