"""NumPyro: NUTS in double precision, chains in one vectorized program or one device each.

``MCMC.run`` without a progress bar compiles its loop again in every call, for a closure in it is
new each time. So the run as a whole is compiled, once, as the library's own tests have it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import numpy as np
import numpyro
from numpyro.infer import MCMC, NUTS

from benchmarks.peers.systems import CHAINS, DRAWS, WARMUP, Sample

numpyro.enable_x64()
numpyro.set_host_device_count(CHAINS)  # before anything starts JAX


def start(
    task: ModuleType, data: dict[str, np.ndarray], chain_method: str, dense: bool = False
) -> Callable[[int], Sample]:
    model, args = task.numpyro(data)
    jax.devices()  # starting JAX is part of its import
    mcmc = MCMC(
        NUTS(model, dense_mass=dense),
        num_warmup=WARMUP,
        num_samples=DRAWS,
        num_chains=CHAINS,
        chain_method=chain_method,
        progress_bar=False,
    )

    def run(key: Any) -> Any:
        mcmc.run(key, *args, extra_fields=("num_steps",))
        return mcmc.get_samples(group_by_chain=True), mcmc.get_extra_fields()["num_steps"]

    compiled: Any = None

    def sample(seed: int) -> Sample:
        nonlocal compiled
        compile_s = None
        key = jax.random.key(seed)
        if compiled is None:
            begin = time.perf_counter()
            compiled = jax.jit(run).lower(key).compile()
            compile_s = time.perf_counter() - begin
        draws, steps = jax.block_until_ready(compiled(key))
        return Sample(
            {k: np.asarray(v) for k, v in draws.items()}, int(steps.sum()), compile_s=compile_s
        )

    return sample
