"""PyMC and nutpie with the setting that probdl has by default where parameters are few."""

from __future__ import annotations

from functools import partial

from benchmarks.peers.systems import pymc

start = partial(pymc.start, low_rank=True)
