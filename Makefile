# make help says what there is. Everything runs in .venv, which `make setup` fills once.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
TORCH_INDEX ?=
SCALE ?= tiny

BIN := .venv/bin
INSTALLED := .venv/.installed
TORCH := $(shell grep '^torch==' constraints.txt)
EXPERIMENTS := $(filter-out smoke,$(basename $(notdir $(wildcard conf/experiment/*.yaml))))

ifeq ($(SCALE),tiny)
  ROOT := outputs
  SCALED :=
  SCALED_TEXT :=
else ifeq ($(SCALE),gpt2)
  ROOT := outputs/gpt2
  SCALED := model=gpt2 dataset=wikitext103 output_root=$(ROOT)
  SCALED_TEXT := train=paper eval=default
else
  $(error SCALE=$(SCALE): choose tiny or gpt2)
endif

.PHONY: help setup train test lint types reproduce clean

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(INSTALLED) ## install into .venv (TORCH_INDEX=https://download.pytorch.org/whl/cpu: no CUDA)

# torch first and from its own index if one is given: a plain install may fetch CUDA libraries
$(INSTALLED): pyproject.toml constraints.txt src/hylorada/__init__.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(TORCH) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

train: setup ## the main job: base, LoRA and HyLoRADA at 4K tokens, then the table; minutes on two cores
	$(BIN)/hylorada-train -m experiment=demo_4k
	$(BIN)/hylorada-report outputs/demo_4k

test: setup ## the test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: setup ## style, format and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: setup ## mypy
	$(BIN)/mypy

reproduce: setup ## every experiment, then the report; done runs are kept (SCALE=gpt2: the paper's)
	@code=0; for name in $(EXPERIMENTS); do \
	  case $$name in retrieval*) text= ;; *) text="$(SCALED_TEXT)" ;; esac; \
	  $(BIN)/hylorada-train -m experiment=$$name $(SCALED) $$text || code=$$?; \
	done; \
	$(BIN)/hylorada-report $(ROOT) || code=$$?; \
	exit $$code

clean: ## caches and built packages; never outputs/
	rm -rf dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
