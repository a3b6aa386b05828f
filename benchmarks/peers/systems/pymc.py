"""PyMC models compiled by numba and sampled by nutpie, with its default diagonal mass matrix."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import nutpie
from threadpoolctl import threadpool_limits

from benchmarks.peers.systems import CHAINS, CORES, DRAWS, WARMUP, Sample


def start(
    task: ModuleType, data: dict[str, np.ndarray], low_rank: bool = False
) -> Callable[[int], Sample]:
    import pymc  # noqa: F401 - imported here so that its import is not timed

    compiled: Any = None

    def sample(seed: int) -> Sample:
        nonlocal compiled
        compile_s = None
        if compiled is None:
            begin = time.perf_counter()
            compiled = nutpie.compile_pymc_model(task.pymc(data), backend="numba")
            compile_s = time.perf_counter() - begin
        with threadpool_limits(1):  # chains use all cores; BLAS would start threads in each chain
            trace = nutpie.sample(
                compiled,
                draws=DRAWS,
                tune=WARMUP,
                chains=CHAINS,
                cores=CORES,
                seed=seed,
                low_rank_modified_mass_matrix=low_rank,
                progress_bar=False,
            )
        draws = {str(k): v.to_numpy() for k, v in trace.posterior.data_vars.items()}
        return Sample(draws, int(trace.sample_stats["n_steps"].sum()), compile_s=compile_s)

    return sample
