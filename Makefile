# Everything here works on a clean clone. Each target makes .venv with what it needs and says what it does.
#
#   make demo TORCH=torch==2.9.0      another torch: any pip requirement, or the path of a wheel
#   make test ARGS="-k journal"       more words for pytest

TORCH  ?= torch==2.13.0
PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
JOBS   ?= 2
SERVE  ?= 1

BIN    := $(VENV)/bin
BENCH  := $(VENV)/bench
pip     = $(1)/bin/python -m pip --disable-pip-version-check -qq
BOLD   := $(if $(MAKE_TERMOUT),\033[1m)
PLAIN  := $(if $(MAKE_TERMOUT),\033[0m)
say     = @printf '$(BOLD)==> %s$(PLAIN)\n' "$(1)"

.PHONY: help demo test test-all test-cuda check bench system-deps clean
.DELETE_ON_ERROR:

help: ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

demo: $(VENV)/.installed ## train a small GPT on two ranks, then look at its run in a browser (SERVE=0: without)
	$(call say,training examples/ddp/train.py on two ranks: about a minute)
	@OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc-per-node=2 examples/ddp/train.py $(ARGS)
	$(call say,torchtrack ls)
	@$(BIN)/torchtrack ls
	$(call say,torchtrack show last)
	@$(BIN)/torchtrack show last
	$(call say,look further)
	@echo "  $(BIN)/torchtrack show --help        every view of a run"
	@echo "  $(BIN)/torchtrack --help             every command"
	@echo "  docs/reading.md                      the same from Python, as Arrow tables"
ifneq ($(SERVE),0)
	$(call say,torchtrack ui: the page (Ctrl-C ends it))
	@$(BIN)/torchtrack ui
endif

test: $(VENV)/.installed-test ## the tests, without those that kill machines or need other trackers
	$(call say,pytest: JOBS=$(JOBS))
	@$(BIN)/python -m pytest --numprocesses=$(JOBS) --dist=loadfile --no-loadscope-reorder $(ARGS)

test-all: $(VENV)/.installed-peers ## all tests: chaos, peers and other frameworks too
	$(call say,pytest with chaos and peers)
	@$(BIN)/python -m pytest -m "" $(ARGS)

test-cuda: $(VENV)/.installed-test ## what a GPU would run (TORCH= a build for it)
	$(call say,pytest on a GPU)
	@$(BIN)/python -m pytest -m cuda $(ARGS)

check: $(VENV)/.installed-test ## ruff and mypy over everything, the types and tests of the page
	$(call say,ruff check)
	@$(BIN)/ruff check .
	$(call say,ruff format --check)
	@$(BIN)/ruff format --check .
	$(call say,mypy)
	@$(BIN)/mypy
	$(call say,the page: types and tests)
	@if ! command -v npm > /dev/null; then echo "no npm here: the page is not checked"; else \
		cd web && { [ -d node_modules ] || npm ci --no-audit --no-fund --loglevel=error > /dev/null; } \
		&& npm run --silent check && npm run --silent test; fi

bench: $(BENCH)/.installed ## every benchmark, beside the other trackers, in a virtual environment of its own
	@mkdir -p benchmarks/results
	@set -e; for file in $(sort $(filter-out benchmarks/_%,$(wildcard benchmarks/*.py))); do \
		printf '$(BOLD)==> %s$(PLAIN)\n' "$$file"; \
		OMP_NUM_THREADS=1 $(BENCH)/bin/python "$$file" $(ARGS); \
	done

system-deps: ## system packages the tests use (strace, chromium), where apt-get is there
	$(call say,system packages: strace chromium)
	@missing=; for tool in strace chromium; do command -v $$tool > /dev/null || missing="$$missing $$tool"; done; \
	if [ -z "$$missing" ]; then echo "they are there"; \
	elif ! command -v apt-get > /dev/null; then echo "no apt-get here: tests that need$$missing are skipped"; \
	elif [ "$$(id -u)" != 0 ] && ! command -v sudo > /dev/null; then echo "not root: apt-get install$$missing yourself"; \
	else $$([ "$$(id -u)" = 0 ] || echo sudo) sh -c \
		"export DEBIAN_FRONTEND=noninteractive; apt-get update -qq && apt-get install -y -qq $$missing" > /dev/null \
		|| echo "apt-get failed: tests that need$$missing are skipped"; fi

clean: ## remove what was built here; runs stay
	$(call say,removing virtual environments and caches)
	@rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp a step: a step is done again only when what it depends on has changed.

$(VENV)/.created:
	$(call say,making a virtual environment in $(VENV))
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.torch: $(VENV)/.created
	$(call say,installing $(TORCH): the large download)
	@$(call pip,$(VENV)) install "$(TORCH)"
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(call say,installing torchtrack)
	@$(call pip,$(VENV)) install --editable '.[cpu,server]'
	@$(BIN)/python -c "from torchtrack.watch.kernels import compile; compile.main()"
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(call say,installing what the tests need)
	@$(call pip,$(VENV)) install --editable '.[test]'
	@touch $@

$(VENV)/.installed-peers: $(VENV)/.installed-test
	$(call say,installing the other trackers and frameworks)
	@$(call pip,$(VENV)) install --editable '.[test,bench,frameworks]'
	@touch $@

$(BENCH)/.installed: pyproject.toml
	$(call say,making a virtual environment in $(BENCH) with the other trackers)
	@$(PYTHON) -m venv $(BENCH)
	@$(call pip,$(BENCH)) install "$(TORCH)"
	@$(call pip,$(BENCH)) install --editable '.[bench]'
	@touch $@
