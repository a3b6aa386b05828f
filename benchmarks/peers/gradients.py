"""How long one gradient of a logistic regression takes, in a process of its own.

``python -m benchmarks.peers.gradients SYSTEM ROWS PREDICTORS`` prints the seconds as JSON. Each
system gets the model that its users write for it, a start at zero, and both cores.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

SYSTEMS = ("probdl", "numpyro", "pymc", "stan")
SCALE = 2.5
ROUND_S = 0.1  # a round of calls lasts so long, or one call does

STAN = """
data {
  int<lower=1> N;
  int<lower=1> K;
  matrix[N, K] x;
  array[N] int<lower=0, upper=1> y;
}
parameters {
  real intercept;
  vector[K] beta;
}
model {
  intercept ~ normal(0, 2.5);
  beta ~ normal(0, 2.5);
  y ~ bernoulli_logit_glm(x, intercept, beta);
}
"""


def data(rows: int, predictors: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, predictors))
    p = 1 / (1 + np.exp(-x @ rng.normal(size=predictors) / predictors**0.5))
    return x, (rng.random(rows) < p).astype(np.int64)


def best(call: Callable[[], Any], rounds: int = 7) -> float:
    """Return the seconds of one call, the best of several rounds."""
    call()
    start = time.perf_counter()
    call()
    calls = max(1, int(ROUND_S / (time.perf_counter() - start)))
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        times.append((time.perf_counter() - start) / calls)
    return min(times)


def probdl(x: np.ndarray, y: np.ndarray) -> float:
    import torch

    from benchmarks.engine import raw
    from probdl import LogDensity
    from probdl.compile import choose
    from probdl.models import logistic_regression

    torch.set_num_threads(int(os.environ.get("PROBDL_BENCH_THREADS", torch.get_num_threads())))
    density = LogDensity.from_model(logistic_regression, (x, y.astype(float)))
    compiled, _ = choose(density, "native", 0)
    return best(raw(compiled, torch.zeros(density.dim, dtype=torch.float64)))


def numpyro(x: np.ndarray, y: np.ndarray) -> float:
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer.util import initialize_model

    numpyro.enable_x64()

    def model(x: Any, y: Any) -> None:
        intercept = numpyro.sample("intercept", dist.Normal(0.0, SCALE))
        with numpyro.plate("predictor", x.shape[-1]):
            beta = numpyro.sample("beta", dist.Normal(0.0, SCALE))
        with numpyro.plate("obs", len(y)):
            numpyro.sample("y", dist.Bernoulli(logits=intercept + x @ beta), obs=y)

    arrays = jnp.asarray(x), jnp.asarray(y)
    start = initialize_model(jax.random.key(0), model, model_args=arrays)
    evaluate = jax.jit(jax.value_and_grad(start.potential_fn))
    point = jax.tree.map(jnp.zeros_like, start.param_info.z)
    return best(lambda: jax.block_until_ready(evaluate(point)))


def pymc(x: np.ndarray, y: np.ndarray) -> float:
    import pymc as pm

    with pm.Model() as model:
        intercept = pm.Normal("intercept", 0.0, SCALE)
        beta = pm.Normal("beta", 0.0, SCALE, shape=x.shape[-1])
        pm.Bernoulli("y", logit_p=intercept + x @ beta, observed=y)
    evaluate = model.logp_dlogp_function(ravel_inputs=True, mode="NUMBA")
    evaluate.set_extra_values({})
    point = np.zeros(1 + x.shape[-1])
    return best(lambda: evaluate(point))


def stan(x: np.ndarray, y: np.ndarray) -> float:
    """Sample twice, one run longer than the other: the rest, which moves the data, is the same."""
    import stan

    given = {"N": len(y), "K": x.shape[-1], "x": x, "y": y}
    short, more = 20, max(20, min(3000, int(2e8 / x.size / 10)))
    found = []
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        posterior = stan.build(STAN, data=given, random_seed=1)
        for draws in (short, short + more):
            start = time.perf_counter()
            fit = posterior.sample(
                num_chains=1, num_warmup=100, num_samples=draws, save_warmup=True
            )
            found.append((time.perf_counter() - start, fit["n_leapfrog__"].sum()))
    (one, few), (other, many) = found
    return float((other - one) / (many - few))


def main(system: str, rows: str, predictors: str) -> None:
    taken = globals()[system](*data(int(rows), int(predictors)))
    print(json.dumps({"seconds": taken}))


if __name__ == "__main__":
    main(*sys.argv[1:])
