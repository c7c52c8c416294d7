# Everything here works from a bare clone with make and Python 3.11 or newer (and its venv module).
# The first run sets up $(VENV); later ones find it ready.

PYTHON ?= python3
VENV ?= .venv
UV_VERSION := 0.13.9
BIN := $(VENV)/bin

# Not expanded: a prompt may have a $$ in it.
PROMPT := $(value PROMPT)
export PROMPT

# The tests start hundreds of processes: what Python has compiled is kept, outside of the tree.
export PYTHONDONTWRITEBYTECODE :=
export PYTHONPYCACHEPREFIX := $(CURDIR)/.cache/pycache

.PHONY: help demo quick test test-all chaos fuzz bench fix check docs lock clean
.DEFAULT_GOAL := help

help: ## Show this
	@echo "make …"
	@sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' Makefile | expand -t 12
	@echo 'PYTHON=python3.12 VENV=.venv-3.12 make …: with another Python, in a folder of its own'

demo: export LTXQ_MODEL_DIR ?= $(CURDIR)/.cache/models
demo: $(VENV)/.ready-demo ## Make a clip on this machine, without a GPU: PROMPT="…" make demo
	@$(BIN)/ltxq demo $${PROMPT:+-- "$$PROMPT"}

quick: $(VENV)/.ready-dev ## Run the tests that need no server and no torch, in under a minute
	@$(BIN)/pytest tests/unit -n 2 --dist worksteal -m "not extended" $(ARGS)

test: $(VENV)/.ready-dev ## Run the tests; ARGS="-k storage" runs some
	@$(BIN)/pytest -n 3 --dist worksteal -m "not extended" $(ARGS)

test-all: $(VENV)/.ready-dev ## Run all tests: storms, fuzzing, soaks, benches and documents too
	@$(BIN)/pytest -n 3 --dist worksteal $(ARGS)

chaos: $(VENV)/.ready-dev ## Kill, cut and stop things at random and see that no job is lost; SEED=n, PIPELINE=tiny
	@$(BIN)/python tests/chaos/chaos.py $(if $(SEED),--seed $(SEED)) $(if $(PIPELINE),--pipeline $(PIPELINE)) $(ARGS)

fuzz: export FUZZ ?= 100000
fuzz: $(VENV)/.ready-dev ## Throw 100,000 inputs at every door; FUZZ=n makes n
	@$(BIN)/pytest tests/fuzz -n 2 --timeout 3600 $(ARGS)

bench: $(VENV)/.ready-dev ## Measure clips on this machine's GPU and fill docs/benchmarks.md; ARGS="--runs 3"
	@$(BIN)/python bench/clip.py --model ltx-2-19b ltx-2.3-22b $(ARGS)
	@$(BIN)/python docs/generate.py

fix: $(VENV)/.ready-dev ## Format, mend what lint can mend, and write the generated documents
	@$(BIN)/ruff format
	@$(BIN)/ruff check --fix
	@$(BIN)/python docs/generate.py

check: $(VENV)/.ready-dev ## Format, lint, types, import rules, generated documents, as CI checks them
	@$(BIN)/ruff format --check
	@$(BIN)/ruff check
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python docs/generate.py --check
	@$(BIN)/zensical build --strict

docs: $(VENV)/.ready-dev ## Build the documents as a site, in .cache/site, with every link checked
	@$(BIN)/zensical build --strict

COMPILE = $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
	--generate-hashes --no-header --no-annotate pyproject.toml
lock: $(VENV)/.ready-uv ## Write requirements/*.txt anew, with the newest versions that fit
	@$(COMPILE) -o requirements/base.txt
	@$(COMPILE) -o requirements/worker.txt --extra worker
	@$(COMPILE) -o requirements/gateway.txt --extra gateway
	@$(COMPILE) -o requirements/flower.txt --extra flower
	@$(COMPILE) -o requirements/demo.txt --extra all
	@$(COMPILE) -o requirements/dev.txt --extra all --group test --group check

clean: ## Remove what was set up or cached here; clips and ltxq-data stay
	rm -rf $(VENV) .cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache dist
	find producer worker tests bench -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.ready-uv: Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'ltxq needs Python 3.11 or newer; name one: make PYTHON=python3.12 …' >&2; exit 1; }
	@echo 'Setting up $(VENV); the first time takes a few minutes.'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@touch $@

# Versions and hashes by the lock file, then this project itself, editable.
$(VENV)/.ready-%: requirements/%.txt pyproject.toml $(VENV)/.ready-uv
	@$(BIN)/uv pip install --python $(BIN)/python --require-hashes -r $<
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $@
