# One verb each. Everything happens in .venv; nothing else on the machine is touched.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
# What pip is told to install for torch, before anything else can ask for it. Override to choose another build:
#   make install TORCH="torch==2.9.1"
TORCH  ?= torch==2.13.0
DEMO   ?= demo-data
ROWS   ?= 600000
# Processes that run tests side by side. Most tests wait for processes to start rather than compute.
TESTERS ?= 2

.PHONY: help install check types tests test demo bench peers recbole clean

help:
	@echo "make demo     write Criteo-like data and train DLRM on local Ray, live"
	@echo "make test     lint, types and tests"
	@echo "make install  the virtual environment alone"
	@echo "make peers    a second environment with the loaders we are measured against"
	@echo "make recbole  a third one with RecBole, which our recommenders' speed is measured against"
	@echo "make bench    measure against them (make peers first)"
	@echo "make clean    remove what the others made"

install: $(VENV)/installed

# Bytecode is compiled by all processors where pip takes one; what packages hold of other languages' templates does not
# compile, and need not.
# An environment that a Python too old has begun would keep it, whatever Python is named the next time.
$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "$(PYTHON) is Python %d.%d, and 3.11 or newer is needed: make install PYTHON=python3.11, say" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check --editable ".[dev]"
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	@touch $@

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

tests: install
	$(BIN)/python -m pytest -q --numprocesses $(TESTERS) --dist worksteal

# Types are checked beside the tests, which leave a processor idle now and then.
test: check
	@$(MAKE) --no-print-directory --jobs 2 types tests

demo: install
	@test ! -f $(DEMO)/dataset.json || echo "$(DEMO) is there already and is used as it is; for other ROWS name another DEMO"
	@test -f $(DEMO)/dataset.json || $(BIN)/intune data synthetic --rows $(ROWS) --out $(DEMO)
	$(BIN)/intune train dlrm --data $(DEMO) --executor ray

peers: .peers/installed

.peers/installed: benchmarks/peers.txt
	$(PYTHON) -m venv .peers
	.peers/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	.peers/bin/python -m pip install --quiet --disable-pip-version-check --requirement benchmarks/peers.txt
	@touch $@

recbole: .recbole/installed

# RecBole asks for an old Ray, which training does not use: it is installed without what it asks for.
.recbole/installed: benchmarks/recbole.txt
	$(PYTHON) -m venv .recbole
	.recbole/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	.recbole/bin/python -m pip install --quiet --disable-pip-version-check --requirement benchmarks/recbole.txt
	.recbole/bin/python -m pip install --quiet --disable-pip-version-check --no-deps recbole==1.2.1
	@touch $@

bench: install peers
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev,plots,s3]"
	$(BIN)/python -m benchmarks.throughput --json results/throughput.json --plot results/throughput.png

clean:
	rm -rf $(VENV) .peers .recbole build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis $(DEMO) bench-data results
