"""PyStan: Stan's C++ code, with one process per chain."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import stan

from benchmarks.peers.systems import CHAINS, DRAWS, WARMUP, Sample


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Discard the progress output and the compiler's warnings."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield


def start(task: ModuleType, data: dict[str, np.ndarray]) -> Callable[[int], Sample]:
    given = task.stan(data)

    def sample(seed: int) -> Sample:
        # The seed is an argument of the build; later builds find the code in the cache.
        with _quiet():
            begin = time.perf_counter()
            posterior = stan.build(task.STAN, data=given, random_seed=seed)
            compile_s = time.perf_counter() - begin
            begin = time.perf_counter()
            fit = posterior.sample(num_chains=CHAINS, num_samples=DRAWS, num_warmup=WARMUP)
            sampling_s = time.perf_counter() - begin
        return Sample(by_site(fit), int(fit["n_leapfrog__"].sum()), sampling_s, compile_s)

    return sample


def by_site(fit: Any) -> dict[str, np.ndarray]:
    """Return the draws as (chain, draw, *shape); a PyStan fit has (*shape, draw x chain)."""
    draws = {}
    for site, shape in zip(fit.param_names, fit.dims, strict=True):
        split = fit[site].reshape(*shape, -1, fit.num_chains)
        draws[site] = np.moveaxis(split, (-1, -2), (0, 1))
    return draws
