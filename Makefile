# `make demo` and `make test` make their own environment in .venv; nothing else is needed
# than Python 3.11 or later.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# ArviZ 1.x needs Python 3.12; its test of the one file that knows both versions runs where there is one.
PYTHON312 ?= python3.12
VENV312 := .venv-arviz1
WORKERS ?= 2
# What calibration is timed against, in an environment of its own.
SIMUK := .venv-simuk
# NumPyro, PyMC and PyStan.
PEERS := .venv-peers

.PHONY: demo test test-arviz1 docs notebooks bench bench-peers bench-scaling bench-references bench-mass bench-engine bench-loops bench-svi bench-gan bench-studies bench-predict lint types check format clean

demo: $(STAMP)  ## fit eight schools and a logistic regression on real data, by four methods
	$(BIN)/python examples/demo.py

test: $(STAMP)  ## the tests and the examples in docstrings
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

test-arviz1:  ## the ArviZ container under ArviZ 1.x, without torch
	@if ! $(PYTHON312) -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then \
		echo "skipped: ArviZ 1.x needs Python 3.12, and '$(PYTHON312)' is not one"; \
	else \
		test -x $(VENV312)/bin/python || $(PYTHON312) -m venv $(VENV312) && \
		$(VENV312)/bin/python -m pip install --quiet "arviz>=1,<2" h5netcdf h5py matplotlib pytest && \
		$(VENV312)/bin/python -m pytest -c tests/torch_free/pytest.ini tests/torch_free; \
	fi

docs: $(STAMP)  ## the documentation, into site/; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

notebooks: $(STAMP)  ## run all notebooks at full size, and store their outputs
	$(BIN)/python notebooks/run.py

bench: bench-peers bench-scaling  ## against Pyro, NumPyro, PyMC and Stan; needs PROBDL_SHARED

$(PEERS)/.installed:
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet numpyro pymc nutpie pystan "matplotlib<3.11"
	touch $@

bench-peers: $(STAMP) $(PEERS)/.installed  ## NUTS on ten tasks; writes benchmarks/results/
	$(BIN)/python -m benchmarks.peers

bench-scaling: $(STAMP) $(PEERS)/.installed  ## gradients over rows and predictors
	$(BIN)/python -m benchmarks.peers.scaling

bench-references: $(STAMP) $(PEERS)/.installed  ## long runs of Stan where there is no reference
	mkdir -p output
	for task in hierarchical_logistic bayesian_network; do \
		$(BIN)/python -c "import sys, numpy; from benchmarks.peers.tasks import load; numpy.savez(f'output/{sys.argv[1]}.npz', **load(sys.argv[1]).data())" $$task; \
	done
	$(PEERS)/bin/python -m benchmarks.peers.references output

bench-mass: $(STAMP)  ## what NUTS's mass matrix gains and costs; needs PROBDL_SHARED
	$(BIN)/python -m benchmarks.mass_matrix

bench-engine: $(STAMP)  ## how fast the native engine is; writes benchmarks/results/
	$(BIN)/python -m benchmarks.engine

bench-loops: $(STAMP)  ## what unrolled loops over time cost to compile
	PROBDL_CACHE="$$(mktemp -d)" $(BIN)/python -m benchmarks.loops

bench-svi: $(STAMP)  ## SVI steps, VAEs and guides; needs PROBDL_SHARED; writes benchmarks/results/
	$(BIN)/python -m benchmarks.svi

bench-gan: $(STAMP)  ## adversarial training; needs PROBDL_SHARED; writes benchmarks/results/
	$(BIN)/python -m benchmarks.gan

bench-studies: $(STAMP)  ## studies and calibration, PyMC and simuk beside; writes benchmarks/results/
	test -x $(SIMUK)/bin/python || $(PYTHON) -m venv $(SIMUK)
	$(SIMUK)/bin/python -m pip install --quiet pymc simuk nutpie || echo "PyMC and simuk are not to be had"
	PROBDL_CACHE="$$(mktemp -d)" $(BIN)/python -m benchmarks.studies

bench-predict: $(STAMP)  ## memory of a large prediction; writes benchmarks/results/
	$(BIN)/python -m benchmarks.predict

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)
	$(BIN)/mypy

check: lint types test test-arviz1

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "probdl needs Python 3.11 or later; try: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV312) $(SIMUK) $(PEERS) output site
