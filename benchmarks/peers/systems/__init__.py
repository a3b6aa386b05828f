"""The systems, one file each.

A system's module has ``start(task, data)``, which returns a sampler: called with a seed, it draws
4 chains of 1,000 draws after 1,000 of warm-up, at default settings otherwise. The first call
compiles what there is to compile; later calls use it again. Pyro is too slow for that, and has
``cost(task, data)`` instead: how long a gradient takes.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

CHAINS, DRAWS, WARMUP, CORES = 4, 1000, 1000, 2
# By system, the packages whose versions the results name.
PACKAGES = {
    "probdl": ("probdl", "torch", "nutpie"),
    "pyro": ("pyro-ppl", "torch"),
    "numpyro_vectorized": ("numpyro", "jax"),
    "numpyro_parallel": ("numpyro", "jax"),
    "numpyro_dense": ("numpyro", "jax"),
    "pymc": ("pymc", "nutpie", "numba"),
    "pymc_low_rank": ("pymc", "nutpie", "numba"),
    "stan": ("pystan", "httpstan"),
}
SYSTEMS = tuple(PACKAGES)
ROOT = Path(__file__).parents[3]


def interpreter(system: str) -> str:
    """Return the Python that has a system; all peers but Pyro have an environment of their own."""
    own = system in ("probdl", "pyro")
    return sys.executable if own else str(ROOT / ".venv-peers" / "bin" / "python")


@dataclass(frozen=True)
class Sample:
    """What one call returns.

    Attributes:
        draws: by site, (chain, draw, *shape).
        gradients: how many the draws after warm-up took, all chains together.
        sampling_s: how long warm-up and draws took, where the call does more than that.
        compile_s: how long this call compiled, where the system does it as a step of its own.
    """

    draws: dict[str, np.ndarray]
    gradients: int
    sampling_s: float | None = None
    compile_s: float | None = None
