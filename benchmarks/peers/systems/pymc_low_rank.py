"""PyMC and nutpie with a low-rank mass matrix, nutpie's option for correlated posteriors."""

from __future__ import annotations

from functools import partial

from benchmarks.peers.systems import pymc

start = partial(pymc.start, low_rank=True)
