"""Loops over time: compilation and gradients, beside NumPyro's scan: `make bench-loops`.

Users of Pyro write a Python loop; those of NumPyro write ``scan``. Writes results/loops.json and
results/loops.md. ``SYSTEM MODEL STEPS`` as arguments times one of them in this process.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.peers.gradients import best, called, seconds_in_jax
from benchmarks.peers.matrices import measured

LENGTHS = (100, 1000, 10_000)
TITLES = {
    "garch": "GARCH(1, 1)",
    "autoregression": "autoregression with moving average",
    "local_level": "local level, a latent value in each step",
    "forward": "forward algorithm, 5 states",
    "epidemic": "SIR by Runge-Kutta of order 4",
}


def data(name: str, steps: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    if name == "epidemic":
        return rng.poisson(5.0, size=steps).astype(float)
    return rng.normal(size=steps)


def models(ppl: Any, arrays: Any, scan: Any) -> dict[str, Callable[..., Any]]:
    """Return the models, which Pyro with torch and NumPyro with JAX write alike but for the loop.

    Args:
        ppl: the probabilistic language.
        arrays: its arrays.
        scan: runs (state, x) -> (state, result) over xs, and returns the state and the results.
    """
    dist = ppl.distributions

    def garch(y: Any) -> None:
        mean = ppl.sample("mean", dist.Normal(0.0, 5.0))
        base = ppl.sample("base", dist.HalfNormal(2.0))
        shock = ppl.sample("shock", dist.Beta(1.0, 1.0))
        kept = ppl.sample("kept", dist.Beta(2.0, 2.0))

        def step(variance: Any, before: Any) -> Any:
            variance = base + shock * (before - mean) ** 2 + kept * (1 - shock) * variance
            return variance, variance

        _, variances = scan(step, arrays.ones(()), y[:-1])
        with ppl.plate("t", len(y) - 1):
            ppl.sample("y", dist.Normal(mean, arrays.sqrt(variances)), obs=y[1:])

    def autoregression(y: Any) -> None:
        slope = ppl.sample("slope", dist.Normal(0.0, 0.5))
        average = ppl.sample("average", dist.Normal(0.0, 0.5))
        sd = ppl.sample("sd", dist.HalfNormal(2.0))

        def step(state: Any, now: Any) -> Any:
            before, error = state
            mean = slope * before + average * error
            return (now, now - mean), mean

        _, means = scan(step, (arrays.zeros(()), arrays.zeros(())), y)
        with ppl.plate("t", len(y)):
            ppl.sample("y", dist.Normal(means, sd), obs=y)

    def local_level(y: Any) -> None:
        sd = ppl.sample("sd", dist.HalfNormal(1.0))
        drift = ppl.sample("drift", dist.HalfNormal(1.0))
        with ppl.plate("steps", len(y)):
            moves = ppl.sample("moves", dist.Normal(0.0, 1.0))

        def step(level: Any, move: Any) -> Any:
            level = 0.99 * level + drift * move
            return level, level

        _, levels = scan(step, arrays.zeros(()), moves)
        with ppl.plate("t", len(y)):
            ppl.sample("y", dist.Normal(levels, sd), obs=y)

    def forward(y: Any) -> None:
        with ppl.plate("state", 5):
            rows = ppl.sample("rows", dist.Dirichlet(arrays.ones(5)))
            means = ppl.sample("means", dist.Normal(0.0, 3.0))
        moves = arrays.log(rows)
        scores = dist.Normal(means, 1.0).log_prob(y[:, None])

        def step(alpha: Any, score: Any) -> Any:
            alpha = arrays.logsumexp(alpha[:, None] + moves, 0) + score
            return alpha, alpha[0]

        alpha, _ = scan(step, scores[0], scores[1:])
        ppl.factor("likelihood", arrays.logsumexp(alpha, 0))

    def epidemic(y: Any) -> None:
        contact = ppl.sample("contact", dist.LogNormal(-1.0, 0.5))
        recovery = ppl.sample("recovery", dist.LogNormal(-2.0, 0.5))
        size = 10.0 / len(y)

        def change(s: Any, i: Any) -> Any:
            infected = contact * s * i
            return -infected, infected - recovery * i

        def step(state: Any, _: Any) -> Any:
            s, i = state
            s1, i1 = change(s, i)
            s2, i2 = change(s + size / 2 * s1, i + size / 2 * i1)
            s3, i3 = change(s + size / 2 * s2, i + size / 2 * i2)
            s4, i4 = change(s + size * s3, i + size * i3)
            s = s + size / 6 * (s1 + 2 * s2 + 2 * s3 + s4)
            i = i + size / 6 * (i1 + 2 * i2 + 2 * i3 + i4)
            return (s, i), i

        _, cases = scan(step, (0.99 * arrays.ones(()), 0.01 * arrays.ones(())), y)
        with ppl.plate("t", len(y)):
            ppl.sample("y", dist.Poisson(100 * cases + 0.1), obs=y)

    found = (garch, autoregression, local_level, forward, epidemic)
    return {f.__name__: f for f in found}


def probdl(name: str, steps: int) -> tuple[float, float]:
    import pyro
    import torch

    from probdl import LogDensity
    from probdl.compile import choose

    def scan(step: Any, state: Any, xs: Any) -> Any:
        results = []
        for x in xs:
            state, result = step(state, x)
            results.append(result)
        return state, torch.stack(results)

    torch.set_num_threads(1)
    start = time.perf_counter()
    density = LogDensity.from_model(models(pyro, torch, scan)[name], (data(name, steps),))
    compiled, _ = choose(density, "native", 0)
    spent = time.perf_counter() - start
    point = density.initial(torch.Generator().manual_seed(1)).numpy().copy()
    return spent, best(called(compiled.address, compiled.user, point))


def numpyro(name: str, steps: int) -> tuple[float, float]:
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions
    from jax.scipy.special import logsumexp as log_sum_exp
    from numpyro.infer.util import initialize_model

    class Arrays:
        ones, zeros, sqrt, log = jnp.ones, jnp.zeros, jnp.sqrt, jnp.log
        logsumexp = staticmethod(log_sum_exp)

    numpyro.enable_x64()
    begin = time.perf_counter()
    model = models(numpyro, Arrays, jax.lax.scan)[name]
    start = initialize_model(jax.random.key(0), model, model_args=(jnp.asarray(data(name, steps)),))
    evaluate = jax.jit(jax.value_and_grad(start.potential_fn))
    point = start.param_info.z
    jax.block_until_ready(evaluate(point))
    spent = time.perf_counter() - begin
    return spent, seconds_in_jax(start.potential_fn, evaluate, point)


def main() -> None:
    from benchmarks.parts import RESULTS

    rows = []
    for name, title in TITLES.items():
        for steps in LENGTHS:
            ours, theirs = (
                measured("benchmarks.peers.loops", s, name, steps) for s in ("probdl", "numpyro")
            )
            rows.append({"model": title, "steps": steps, "probdl": ours, "numpyro": theirs})
            print(rows[-1], flush=True)
    (RESULTS / "loops.json").write_text(json.dumps(rows, indent=1) + "\n")
    lines = [
        "# Loops over time beside NumPyro's scan",
        "",
        "Made by `make bench-loops`: a Python loop here, `scan` there. One core; value and "
        "gradient in microseconds, NumPyro in a compiled loop; the seconds until the first "
        "gradient, with an empty cache and without imports.",
        "",
        "| model | steps | first gradient, s | NumPyro, s | gradient, µs | NumPyro, µs | ratio |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        (first, ours), (their_first, theirs) = row["probdl"], row["numpyro"]
        lines.append(
            f"| {row['model']} | {row['steps']:,} | {first:.1f} | {their_first:.1f} | "
            f"{1e6 * ours:,.0f} | {1e6 * theirs:,.0f} | {ours / theirs:.2f} |"
        )
    (RESULTS / "loops.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    if sys.argv[1:]:
        print(json.dumps(globals()[sys.argv[1]](sys.argv[2], int(sys.argv[3]))))
    else:
        main()
