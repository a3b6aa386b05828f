"""NumPyro: NUTS in double precision, with vectorized chains or one device per chain.

``MCMC.run`` without a progress bar recompiles its loop in every call because it creates a new
closure each time. Therefore the whole run is compiled once, as in the library's own tests.
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
numpyro.set_host_device_count(CHAINS)  # must precede the start of JAX


def start(
    task: ModuleType, data: dict[str, np.ndarray], chain_method: str, dense: bool = False
) -> Callable[[int], Sample]:
    model, args = task.numpyro(data)
    jax.devices()  # count the start of JAX as part of its import
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
