"""Pyro's own examples, unmodified, on probdl: `python -m benchmarks.pyro_examples CHECKOUT`."""
