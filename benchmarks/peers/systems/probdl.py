"""probdl: NUTS on the native engine.

Sampling is all of ``infer`` but compiling and verifying, which has a clock of its own, and the
diagnosis at the end, which the peers do not make. The first call is timed with all of it.
"""

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
        sampling_s = fit.timings["total"] - fit.timings["compile"]
        return Sample(dict(fit.draws), int(fit.stats["n_steps"].sum()), sampling_s)

    return sample
