# make help says what there is. Everything runs in .venv, which `make setup` fills once.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
TORCH_INDEX ?=
SCALE ?= tiny

BIN := .venv/bin
INSTALLED := .venv/.installed
TORCH := $(shell grep '^torch==' constraints.txt)

# Tables are overlays: conf/experiment/t2_*.yaml at the scale of the embedded base, smollm2_t2_*.yaml and gpt2_t2_*.yaml at others.
ifeq ($(SCALE),tiny)
  PREFIX :=
  ROOT := outputs/tables
else ifneq ($(filter smollm2 gpt2,$(SCALE)),)
  PREFIX := $(SCALE)_
  ROOT := outputs/tables_$(SCALE)
else
  $(error SCALE=$(SCALE): choose tiny, smollm2 or gpt2)
endif
# Where a core is enough for a run, one run a core is faster than one run on all of them.
ifneq ($(SCALE),gpt2)
  CELLS := env OMP_NUM_THREADS=1 $(BIN)/hylorada-train -m launcher=processes
else
  CELLS := $(BIN)/hylorada-train -m
endif
# A plan for the machine that is here, but for the paper's scale where no GPU is.
PLANNED := $(if $(filter gpt2,$(SCALE)),$(if $(shell command -v nvidia-smi),true,elsewhere),true)
# A step against peft's (benchmarks/README.md), on the architecture of the embedded base or on one of SmolLM2's size.
STEP = $(BIN)/python benchmarks/step.py --model $(if $(PREFIX),gpt2,tiny) --precision fp32 --repeats 3 --out $(ROOT)/step
# More words for each run, as in WORDS="dataset.path=FOLDER seed=0".
WORDS ?=
overlays = $(sort $(foreach table,$(1),$(basename $(notdir $(wildcard conf/experiment/$(PREFIX)$(table)*.yaml)))))
TABLES := t1_ t2_ t3_ t8_ t9_
empty :=
comma := ,
experiments = experiment=$(subst $(empty) $(empty),$(comma),$(call overlays,$(1)))

# Every cell of every overlay runs, whatever happens to the others; the first failure gives the exit code.
define run
@code=0; $(CELLS) $(call experiments,$(1)) $(WORDS) || code=$$?; \
$(BIN)/hylorada-report $(ROOT) || code=$$?; exit $$code
endef

.PHONY: help setup train smollm2 test lint types audit reproduce plan table-t1 table-t2 table-t2-best table-t3 table-t4 table-t5 table-t6 table-t7 table-t8 table-t9 clean

help: ## show this list
	@grep -hE '^[a-z0-9 -]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

setup: $(INSTALLED) ## install into .venv (TORCH_INDEX=https://download.pytorch.org/whl/cpu: no CUDA)

# torch first and from its own index if one is given: a plain install may fetch CUDA libraries
$(INSTALLED): pyproject.toml constraints.txt src/hylorada/__init__.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(TORCH) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,joblib]'
	touch $@

train: setup ## the demo: base, LoRA and HyLoRADA at 4K tokens, then the table; minutes on two cores
	$(BIN)/hylorada-train -m experiment=demo_4k
	$(BIN)/hylorada-report outputs/demo_4k

smollm2: setup ## download the base model SmolLM2-135M-Instruct into the user's cache (98 MB), for model=smollm2
	$(BIN)/hylorada-fetch smollm2

test: setup ## run the test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: setup ## check style, formatting and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: setup ## check types with mypy
	$(BIN)/mypy

audit: setup ## look up known vulnerabilities of the installed packages (needs a network)
	@test -x .venv-audit/bin/pip-audit || { $(PYTHON) -m venv .venv-audit \
	  && .venv-audit/bin/python -m pip install --quiet pip-audit==2.10.1; } \
	  || { echo "make audit: pip-audit cannot be installed; nothing was audited" >&2; exit 2; }
	@$(BIN)/python scripts/audit.py $(BIN)/python .venv-audit/bin/python

reproduce: $(if $(filter gpt2,$(SCALE)),plan) table-t5 ## all tables, then the report; finished runs are kept (SCALE=smollm2: hours; SCALE=gpt2: the paper's setting, days)
	$(call run,$(TABLES))

plan: setup ## estimate time and memory of all tables; nothing is run (SCALE=gpt2: also without a GPU or the hub)
	@$(CELLS) $(call experiments,$(TABLES)) dry_run=$(PLANNED) $(WORDS)

table-t1: setup ## table 1: components at 512 tokens
	$(call run,t1_)

table-t4 table-t6 table-t7: table-t2 ## context gain, parameters per 1 % gain, short context, from the runs of table-t2

table-t2: setup ## table 2: methods at 2K, 4K and 8K tokens, components at 4K
	$(call run,t2_)

table-t2-best: setup ## table 2 at 4K with each method at its own learning rate, chosen on validation
	@$(CELLS) experiment=$(PREFIX)rates_t2_4k $(WORDS)
	$(BIN)/hylorada-eval chosen=$(ROOT)_best select=train.lr eval=$(if $(filter gpt2,$(SCALE)),full,table)
	$(BIN)/hylorada-report $(ROOT)_best --select train.lr

table-t3: setup ## table 3: retrieval accuracy by depth
	$(call run,t3_)

table-t5: setup ## table 5: time and memory of a training step (needs an idle machine)
ifeq ($(SCALE),gpt2)
	$(BIN)/python benchmarks/gpu.py --stages 2a,2b --out $(ROOT)/gpu.jsonl
else
	$(STEP) --lengths 512,2048,4096 --arms peft-sdpa,peft-eager,loss+kernels,hylorada
	$(STEP) --lengths 8192 --arms peft-sdpa,loss+kernels,hylorada
endif

table-t8: setup ## table 8: controls (landmarks that read the future)
	$(call run,t2_main_2k t8_)

table-t9: setup ## table 9: thresholds of the adaptive rule
	$(call run,t2_factorial t9_)

clean: ## remove caches and built packages (never outputs/)
	rm -rf dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
