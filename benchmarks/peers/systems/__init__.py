"""The systems, one file each.

A system's module has ``start(task, data)``, which returns a sampler. Called with a seed, the
sampler returns 4 chains of 1,000 draws after 1,000 warm-up iterations, with default settings
otherwise. The first call compiles; later calls use the compiled code. Pyro is too slow for that:
its module has ``cost(task, data)`` instead, which times a gradient.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

CHAINS, DRAWS, WARMUP, CORES = 4, 1000, 1000, 2
# By system, the packages whose versions are reported.
PACKAGES = {
    "probdl": ("probdl", "torch"),
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
    """Return the Python of a system; all peers except Pyro are in a separate environment."""
    own = system in ("probdl", "pyro")
    return sys.executable if own else str(ROOT / ".venv-peers" / "bin" / "python")


@dataclass(frozen=True)
class Sample:
    """The result of one call.

    Attributes:
        draws: draws by site, (chain, draw, *shape).
        gradients: number of gradient evaluations after warm-up, over all chains.
        sampling_s: seconds of warm-up and draws, if the call does more than that.
        compile_s: seconds of compilation, if it is a separate step of the system.
    """

    draws: dict[str, np.ndarray]
    gradients: int
    sampling_s: float | None = None
    compile_s: float | None = None
