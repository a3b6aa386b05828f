"""NumPyro with ``chain_method="vectorized"``."""

from __future__ import annotations

from functools import partial

from benchmarks.peers.systems import numpyro

start = partial(numpyro.start, chain_method="vectorized")
