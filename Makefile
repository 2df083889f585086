# Each target sets up what it needs. The virtual environment is .venv; its packages are locked by hash.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo fast test test-fast test-examples test-parquet lint check bench bench-closed-loop docs experiments test-engines lock clean help

help:
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fairlead needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: requirements/runtime.lock pyproject.toml | $(BIN)/python
	$(PIP) install --require-hashes -r requirements/runtime.lock
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: requirements/dev.lock $(VENV)/.runtime
	$(PIP) install --require-hashes -r requirements/dev.lock
	@touch $@

demo: $(VENV)/.runtime ## four engines, the gateway, four clients: the difference, live, in a minute
	@$(BIN)/fairlead demo $(ARGS)

fast: $(VENV)/.dev ## compile the hot path (two minutes; needs a C compiler): docs/compiled.md
	@$(BIN)/python scripts/compile.py

test: $(VENV)/.dev ## the fast test suite, in pure Python
	FAIRLEAD_PURE=1 $(BIN)/python -m pytest $(ARGS)

test-fast: $(VENV)/.dev ## compiled code gives what the sources give, and passes their tests
	@$(BIN)/python scripts/compile.py --untrained
	$(BIN)/python -m pytest --override-ini addopts="-q --strict-markers -rs" \
	  tests/compiled tests/core tests/engine tests/simulate tests/testing tests/test_recorded_decisions.py \
	  tests/test_external.py $(ARGS)

test-engines: | $(BIN)/python ## the suite on two real vLLM servers, in .venv-engines (about 4 GB, minutes)
	@$(PYTHON) scripts/setup_engines.py
	FAIRLEAD_PURE=1 $(VENV)-engines/bin/python -m pytest --override-ini addopts="-q --strict-markers" \
	  --confcutdir=tests/engines tests/engines $(ARGS)

test-examples: $(VENV)/.dev ## policies in a package of their own, installed and run as a user would
	rm -rf out/examples
	$(PIP) install --no-deps --no-build-isolation --target out/examples ./examples/fairlead-example-policies
	PYTHONPATH=out/examples $(BIN)/fairlead policies | grep "package: fairlead-example-policies"
	PYTHONPATH=out/examples $(BIN)/fairlead simulate judge --requests 100 --policy warmest:slack=4 --order round_robin_clients
	PYTHONPATH=out/examples $(BIN)/python -m pytest -q -p no:cacheprovider examples/fairlead-example-policies

test-parquet: $(VENV)/.dev ## traces in parquet files, with pyarrow installed beside the environment
	rm -rf out/parquet
	$(PIP) install --target out/parquet "pyarrow>=17"
	PYTHONPATH=out/parquet $(BIN)/python -m pytest -q -rs -p no:cacheprovider tests/trace/test_read_sources.py -k parquet

lint: $(VENV)/.dev ## ruff and mypy, strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test ## what to run before a commit

bench: $(VENV)/.dev ## the core's and the simulator's benchmarks: ratios, and absolute figures
	@for b in core.index core.ordering core.routing core.dispatcher simulate; do echo "== benchmarks.$$b"; \
	  $(BIN)/python -m benchmarks.$$b $(ARGS) || exit 1; done

bench-closed-loop: $(VENV)/.runtime ## what a light client gets beside heavy ones: gateway and engine as processes, seven minutes
	@$(BIN)/python -m benchmarks.gateway.closed_loop $(ARGS)

$(VENV)-docs/.done: requirements/docs.lock | $(BIN)/python
	$(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/python -m pip --disable-pip-version-check --quiet install --require-hashes -r requirements/docs.lock
	@touch $@

docs: $(VENV)/.runtime $(VENV)-docs/.done ## write the generated pages, then build the documentation into site/
	@FAIRLEAD_PURE=1 $(BIN)/python scripts/reference.py
	@FAIRLEAD_PURE=1 $(BIN)/python scripts/draw_experiments.py
	@rm -rf build/docs-sources && mkdir -p build/docs-sources
	@tar -C src --exclude='*.so' --exclude=__pycache__ -cf - fairlead | tar -C build/docs-sources -xf -
	@NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build --strict --quiet --clean
	@echo "site/index.html"

experiments: $(VENV)/.runtime ## E1 to E5 and E7 in their quick forms, a minute; docs/experiments.md has the full ones
	@$(BIN)/fairlead experiment --quick $(ARGS)

lock: ## renew the locked dependencies
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet pip-tools
	for f in runtime dev docs; do $(VENV)-lock/bin/pip-compile --quiet --upgrade --generate-hashes --strip-extras --allow-unsafe --no-emit-index-url \
	  --no-emit-trusted-host --no-emit-find-links --no-header -o requirements/$$f.lock requirements/$$f.in; done

clean: ## remove the environments, caches and what was compiled
	$(PYTHON) scripts/compile.py --clean
	rm -rf $(VENV) $(VENV)-lock $(VENV)-docs $(VENV)-engines site .mypy_cache .ruff_cache .pytest_cache .hypothesis build
