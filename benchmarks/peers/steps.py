"""Steps of SVI with a mean-field guide, beside NumPyro: `make bench-steps`.

Writes results/steps.json and results/steps.md. ``SYSTEM MODEL`` as arguments times one of them in
this process: the seconds of a first call of few steps, and of a step.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.peers.matrices import measured

FEW = 1000
STEPS = {"schools": 200_000, "logistic": 40_000, "hierarchical": 100_000}  # of the longer runs
BATCH = {"logistic": 100}
ROUNDS = 3
TITLES = {
    "schools": "eight schools",
    "logistic": "logistic regression, 10,000 rows of 20 predictors, minibatches of 100",
    "hierarchical": "normal model of 100 groups, 10,000 rows",
}


def data(name: str) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    if name == "schools":
        sigma = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
        return sigma, np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    if name == "logistic":
        x = rng.normal(size=(10_000, 20))
        p = 1 / (1 + np.exp(-x @ rng.normal(size=20) / 20**0.5))
        return x, (rng.random(10_000) < p).astype(float)
    group = rng.integers(100, size=10_000)
    return group, rng.normal(size=100)[group] + rng.normal(size=10_000)


def models(ppl: Any, arrays: Any, batch: int | None) -> dict[str, Callable[..., Any]]:
    """Return the models, which Pyro with torch and NumPyro with JAX write alike.

    Args:
        ppl: the probabilistic language.
        arrays: its arrays.
        batch: the size of a minibatch that the plate selects; None where the caller does.
    """
    dist = ppl.distributions

    def schools(sigma: Any, y: Any) -> None:
        mu = ppl.sample("mu", dist.Normal(0.0, 5.0))
        tau = ppl.sample("tau", dist.HalfCauchy(5.0))
        with ppl.plate("school", 8):
            eta = ppl.sample("eta", dist.Normal(0.0, 1.0))
            ppl.sample("y", dist.Normal(mu + tau * eta, sigma), obs=y)

    def logistic(x: Any, y: Any) -> None:
        beta = ppl.sample("beta", dist.Normal(arrays.zeros(20), 1.0).to_event(1))
        with ppl.plate("data", len(x), subsample_size=batch) as rows:
            if batch is not None:
                x, y = x[rows], y[rows]
            ppl.sample("y", dist.Bernoulli(logits=x @ beta), obs=y)

    def hierarchical(group: Any, y: Any) -> None:
        mu = ppl.sample("mu", dist.Normal(0.0, 1.0))
        tau = ppl.sample("tau", dist.HalfNormal(1.0))
        sd = ppl.sample("sd", dist.HalfNormal(1.0))
        with ppl.plate("group", 100):
            effect = ppl.sample("effect", dist.Normal(0.0, 1.0))
        with ppl.plate("data", len(y)):
            ppl.sample("y", dist.Normal(mu + tau * effect[group], sd), obs=y)

    return {f.__name__: f for f in (schools, logistic, hierarchical)}


def timed(name: str, run: Callable[[int], Any]) -> tuple[float, float]:
    """Return the seconds of the first call, and those of a step: the slope between two lengths."""

    def seconds(steps: int) -> float:
        start = time.perf_counter()
        run(steps)
        return time.perf_counter() - start

    first = seconds(FEW)
    short, long = (min(seconds(n) for _ in range(ROUNDS)) for n in (FEW, STEPS[name]))
    return first, (long - short) / (STEPS[name] - FEW)


def probdl(name: str) -> tuple[float, float]:
    import warnings

    import pyro
    import torch

    import probdl

    warnings.simplefilter("ignore", probdl.FindingWarning)
    torch.set_num_threads(1)
    arrays = data(name)

    def run(steps: int) -> Any:
        method = probdl.SVI(
            guide="normal", steps=steps, learning_rate=0.01, batch_size=BATCH.get(name), draws=100
        )
        return probdl.infer(models(pyro, torch, None)[name], *arrays, method=method, seed=1)

    return timed(name, run)


def numpyro(name: str) -> tuple[float, float]:
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.infer.autoguide import AutoNormal

    numpyro.enable_x64()
    arrays = [jnp.asarray(array) for array in data(name)]

    def run(steps: int) -> Any:
        model = models(numpyro, jnp, BATCH.get(name))[name]
        svi = SVI(model, AutoNormal(model), numpyro.optim.Adam(0.01), Trace_ELBO())
        result = svi.run(jax.random.key(1), steps, *arrays, progress_bar=False)
        return jax.block_until_ready(result.losses)

    return timed(name, run)


def main() -> None:
    from benchmarks.parts import RESULTS

    rows = []
    for name, title in TITLES.items():
        ours, theirs = (
            measured("benchmarks.peers.steps", system, name) for system in ("probdl", "numpyro")
        )
        rows.append({"model": title, "probdl": ours, "numpyro": theirs})
        print(rows[-1], flush=True)
    (RESULTS / "steps.json").write_text(json.dumps(rows, indent=1) + "\n")
    lines = [
        "# Steps of SVI beside NumPyro",
        "",
        "Made by `make bench-steps`: Adam on the ELBO of a mean-field guide, float64, one core. "
        f"The first call takes {FEW:,} steps with an empty cache, in a process that has imported "
        "the packages, and includes the checks of the fit here. A step is the slope between runs "
        "of two lengths.",
        "",
        "| model | first call, s | NumPyro, s | step, µs | NumPyro, µs | ratio |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        (first, ours), (their_first, theirs) = row["probdl"], row["numpyro"]
        lines.append(
            f"| {row['model']} | {first:.1f} | {their_first:.1f} | {1e6 * ours:,.2f} | "
            f"{1e6 * theirs:,.2f} | {ours / theirs:.2f} |"
        )
    (RESULTS / "steps.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    if sys.argv[1:]:
        print(json.dumps(globals()[sys.argv[1]](sys.argv[2])))
    else:
        main()
