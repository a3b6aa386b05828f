"""probdl: NUTS on the native engine, the whole call with its checks."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import ModuleType

import numpy as np

import probdl
from benchmarks.peers.systems import CHAINS, DRAWS, WARMUP, Sample


def start(task: ModuleType, data: dict[str, np.ndarray]) -> Callable[[int], Sample]:
    warnings.simplefilter("ignore", probdl.FindingWarning)
    model, args = task.pyro(data)
    method = probdl.NUTS(draws=DRAWS, warmup=WARMUP, chains=CHAINS)

    def sample(seed: int) -> Sample:
        fit = probdl.infer(model, *args, method=method, seed=seed, progress=False)
        return Sample(dict(fit.draws), int(fit.stats["n_steps"].sum()))

    return sample
