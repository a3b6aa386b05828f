"""NumPyro with parallel chains and a dense mass matrix, its option for correlated posteriors."""

from __future__ import annotations

from functools import partial

from benchmarks.peers.systems import numpyro

start = partial(numpyro.start, chain_method="parallel", dense=True)
