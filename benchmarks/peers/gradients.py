"""Time one gradient of a logistic regression in a separate process.

``python -m benchmarks.peers.gradients SYSTEM ROWS PREDICTORS`` prints the seconds as JSON. Each
system runs an idiomatic model on all cores, except Stan, whose chain uses one. Times exclude Python
overhead: the compiled functions of probdl and nutpie are called by address, as the sampler does,
JAX's in a compiled loop if that is faster, and Stan reports the time of its sampler.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

SYSTEMS = ("probdl", "numpyro", "pymc", "stan")
SCALE = 2.5
ROUND_S = 0.1  # minimum duration of a round of calls
ENOUGH_S = 1.0  # minimum duration of Stan's sampling

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
    """Return the seconds per call, the minimum over several rounds."""
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


def called(address: int, user: int, point: np.ndarray) -> Callable[[], Any]:
    """Return a callable that evaluates C's ``logp(dim, z, grad, value, user)`` at a point."""
    grad, value = np.empty(len(point)), np.empty(())
    arguments = (
        ctypes.c_uint64(len(point)),
        *(ctypes.c_void_p(a.ctypes.data) for a in (point, grad, value)),
        ctypes.c_void_p(user),
    )
    function = ctypes.CFUNCTYPE(ctypes.c_int64, *map(type, arguments))(address)
    # Keep the arrays alive for as long as the pointers are used.
    return lambda: (function(*arguments), point, grad, value)


def seconds_in_jax(
    potential: Callable[..., Any], evaluate: Callable[..., Any], point: Any
) -> float:
    """Time a gradient in JAX, alone (compiled) and in a compiled loop; return the shorter time."""
    import jax

    alone = best(lambda: jax.block_until_ready(evaluate(point)))
    times = max(1, min(1000, int(ROUND_S / alone)))

    def move(_: int, at: Any) -> Any:  # tiny: each gradient depends on the previous one
        value, gradient = jax.value_and_grad(potential)(at)
        return jax.tree.map(lambda a, g: a - 1e-12 * (g + value), at, gradient)

    loop = jax.jit(lambda at: jax.lax.fori_loop(0, times, move, at))
    return min(alone, best(lambda: jax.block_until_ready(loop(point))) / times)


def probdl(x: np.ndarray, y: np.ndarray) -> float:
    import torch

    from probdl import LogDensity
    from probdl.compile import choose
    from probdl.models import logistic_regression

    torch.set_num_threads(int(os.environ.get("PROBDL_BENCH_THREADS", torch.get_num_threads())))
    density = LogDensity.from_model(logistic_regression, (x, y.astype(float)))
    compiled, _ = choose(density, "native", 0)
    return best(called(compiled.address, compiled.user, np.zeros(density.dim)))


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
    return seconds_in_jax(start.potential_fn, evaluate, point)


def pymc(x: np.ndarray, y: np.ndarray) -> float:
    import nutpie
    import pymc as pm

    with pm.Model() as model:
        intercept = pm.Normal("intercept", 0.0, SCALE)
        beta = pm.Normal("beta", 0.0, SCALE, shape=x.shape[-1])
        pm.Bernoulli("y", logit_p=intercept + x @ beta, observed=y)
    compiled = nutpie.compile_pymc_model(model, backend="numba")
    user = compiled.user_data.ctypes.data
    return best(called(compiled.compiled_logp_func.address, user, np.zeros(compiled.n_dim)))


def stan(x: np.ndarray, y: np.ndarray) -> float:
    """Return the sampling time that Stan reports, divided by its number of gradients."""
    import stan

    given = {"N": len(y), "K": x.shape[-1], "x": x, "y": y}
    draws, seconds, gradients = 20, 0.0, 0
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        while seconds < ENOUGH_S:
            posterior = stan.build(STAN, data=given, random_seed=draws)
            fit = posterior.sample(num_chains=1, num_warmup=100, num_samples=draws)
            found = re.search(rb"([\d.]+) seconds \(Sampling\)", fit.stan_outputs[0])
            seconds, gradients = float(found[1]), int(fit["n_leapfrog__"].sum())
            draws *= 5
    return seconds / gradients


def main(system: str, rows: str, predictors: str) -> None:
    taken = globals()[system](*data(int(rows), int(predictors)))
    print(json.dumps({"seconds": taken}))


if __name__ == "__main__":
    main(*sys.argv[1:])
