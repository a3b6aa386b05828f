# `make demo` and `make test` make their own environment; nothing else is needed than Python 3.11 or
# later and a C compiler. `make test PYTHON=python3.13` takes that Python, in an environment of its own.

PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
VENV := .venv-$(VERSION)
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# ArviZ 1 needs Python 3.12, and the newest nutpie as well.
CONSTRAINTS := $(if $(filter 3.11,$(VERSION)),constraints.txt,constraints-3.12.txt)
WORKERS ?= 2
# What calibration is timed against, in an environment of its own.
SIMUK := .venv-simuk
# NumPyro, PyMC and PyStan.
PEERS := .venv-peers

.PHONY: demo test coverage environment test-matrix docs findings operations notebooks bench bench-busy bench-peers bench-scaling bench-matrices bench-references bench-mass bench-starts bench-sampler bench-saas bench-engine bench-loops bench-steps bench-svi bench-gan bench-studies bench-predict bench-pyro bench-scale bench-honesty attack fuzz lint types check format clean

demo: $(STAMP)  ## fit eight schools and a logistic regression on real data, by four methods
	$(BIN)/python examples/demo.py

test: $(STAMP)  ## the tests and the examples in docstrings
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

coverage: $(STAMP)  ## the tests with line coverage, into htmlcov/
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --cov --cov-report=html --cov-report=term

environment: $(STAMP)

test-matrix:  ## what runs where: Python, torch, ArviZ and nutpie; writes docs/compatibility.md
	$(PYTHON) tests/matrix.py

docs: $(STAMP)  ## the documentation, into site/, looked at in a browser; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(BIN)/python docs/browser.py site

findings: $(STAMP)  ## the page of all findings, from the table in the code
	$(BIN)/python docs/findings.py

operations: $(STAMP)  ## the page of what is native, by compiling it
	$(BIN)/python -m tests.compile.census

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

bench-matrices: $(STAMP) $(PEERS)/.installed  ## gradients of models with matrices, beside NumPyro
	$(BIN)/python -m benchmarks.peers.matrices

bench-references: $(STAMP) $(PEERS)/.installed  ## long runs of Stan where there is no reference
	mkdir -p output
	for task in hierarchical_logistic bayesian_network; do \
		$(BIN)/python -c "import sys, numpy; from benchmarks.peers.tasks import load; numpy.savez(f'output/{sys.argv[1]}.npz', **load(sys.argv[1]).data())" $$task; \
	done
	$(PEERS)/bin/python -m benchmarks.peers.references output

bench-busy: $(STAMP)  ## steps with other work on the cores; writes benchmarks/results/
	$(BIN)/python -m benchmarks.busy

bench-mass: $(STAMP)  ## what NUTS's mass matrix gains and costs; needs PROBDL_SHARED
	$(BIN)/python -m benchmarks.mass_matrix

bench-starts: $(STAMP)  ## chains that stay where they started; needs PROBDL_SHARED
	$(BIN)/python -m benchmarks.starts

bench-sampler: $(STAMP)  ## the sampler in C beside nutpie's; needs PROBDL_SHARED
	$(BIN)/python -m benchmarks.sampler

bench-engine: $(STAMP)  ## how fast the native engine is; writes benchmarks/results/
	$(BIN)/python -m benchmarks.engine

bench-loops: $(STAMP) $(PEERS)/.installed  ## loops over time, beside NumPyro's scan
	$(BIN)/python -m benchmarks.peers.loops

.venv-botorch-pyro/.installed:  # the last release of BoTorch that fits by Pyro, beside this package
	$(PYTHON) -m venv .venv-botorch-pyro
	.venv-botorch-pyro/bin/python -m pip install --quiet -c $(CONSTRAINTS) -e . "botorch<0.18"
	touch $@

.venv-botorch/.installed:
	$(PYTHON) -m venv .venv-botorch
	.venv-botorch/bin/python -m pip install --quiet -c $(CONSTRAINTS) "botorch[fully-bayesian]"
	touch $@

bench-saas: $(STAMP) .venv-botorch-pyro/.installed .venv-botorch/.installed  ## a Gaussian process of BoTorch
	$(BIN)/python -m benchmarks.peers.saas

bench-svi: $(STAMP)  ## SVI steps, VAEs and guides; needs PROBDL_SHARED; writes benchmarks/results/
	$(BIN)/python -m benchmarks.svi

bench-steps: $(STAMP) $(PEERS)/.installed  ## steps of SVI, beside NumPyro
	$(BIN)/python -m benchmarks.peers.steps

bench-gan: $(STAMP)  ## adversarial training; needs PROBDL_SHARED; writes benchmarks/results/
	$(BIN)/python -m benchmarks.gan

bench-studies: $(STAMP)  ## studies and calibration, PyMC and simuk beside; writes benchmarks/results/
	test -x $(SIMUK)/bin/python || $(PYTHON) -m venv $(SIMUK)
	$(SIMUK)/bin/python -m pip install --quiet pymc simuk nutpie || echo "PyMC and simuk are not available"
	PROBDL_CACHE="$$(mktemp -d)" $(BIN)/python -m benchmarks.studies

bench-pyro: $(STAMP)  ## programs of Pyro users beside Pyro; writes benchmarks/results/
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.pyro_programs

bench-scale: $(STAMP)  ## fits by forks and by a Dask cluster; writes benchmarks/results/
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.scale

bench-predict: $(STAMP)  ## memory of a large prediction; writes benchmarks/results/
	$(BIN)/python -m benchmarks.predict

bench-honesty: $(STAMP)  ## 72 models with known answers by every method; needs PROBDL_SHARED
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.honesty

attack: $(STAMP)  ## hostile files, malformed calls, interrupts and kills, all of them; prints counts
	log=$$(mktemp); PROBDL_ATTACK=$$log OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto tests/attack tests/test_kill.py tests/compile/test_runtime.py && sort $$log | uniq -c; status=$$?; rm -f $$log; exit $$status

fuzz: $(STAMP)  ## 1,000 random models in native code and in Pyro; prints the engines
	log=$$(mktemp); PROBDL_FUZZ=250 PROBDL_FUZZ_LOG=$$log OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto tests/compile/test_fuzz.py && sort $$log | uniq -c; status=$$?; rm -f $$log; exit $$status

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)
	$(BIN)/mypy

check: lint types docs test  ## all that must pass before a change is taken
	.ci/newest

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@test -n "$(VERSION)" || { echo "$(PYTHON) does not run. Pass the path of a Python 3.11 or later: make PYTHON=/path/to/python3.13 ..."; exit 1; }
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "probdl needs Python 3.11 or later; try: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv .venv-* output site
