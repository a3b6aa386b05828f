"""probdl: NUTS on the native engine.

The sampling time is that of ``infer`` without compiling and verifying, which are timed separately,
and without the final diagnosis, which the peers do not perform. The first call includes everything.
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
        spent = fit.timings
        sampling_s = spent["total"] - spent["compile"] - spent["checks"]
        return Sample(dict(fit.draws), int(fit.stats["n_steps"].sum()), sampling_s)

    return sample
