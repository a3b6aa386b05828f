"""Gradients of models with matrices, loops and groups, beside NumPyro: `make bench-matrices`.

Each system evaluates value and gradient on one core, NumPyro in a compiled loop. Writes
results/matrices.json and results/matrices.md. ``SYSTEM MODEL`` as arguments times one of them in
this process and prints the seconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.gradients import best, called, seconds_in_jax
from benchmarks.peers.systems import ROOT, interpreter

ONE_CORE = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}
REPEATS = 3

MODELS: dict[str, tuple[str, tuple[int, ...]]] = {
    "Gaussian process, 100 points": ("process", (100,)),
    "Gaussian process, 250 points": ("process", (250,)),
    "Gaussian process, 500 points": ("process", (500,)),
    "Gaussian process, 1,000 points": ("process", (1000,)),
    "Gaussian process, 2,000 points": ("process", (2000,)),
    "Bayesian network 1-100-100-1, 200 rows": ("network", (200, 100)),
    "Bayesian network 1-100-100-1, 2,000 rows": ("network", (2000, 100)),
    "correlated normals, 10 dimensions, 1,000 rows": ("correlated", (1000, 10)),
    "hierarchical, 1,000 groups, 100,000 rows": ("hierarchical", (100_000, 1000)),
}


def data(kind: str, sizes: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    if kind == "process":
        x = np.sort(rng.uniform(0, 10, sizes[0]))
        return x, np.sin(x) + 0.3 * rng.normal(size=len(x))
    if kind == "network":
        x = rng.normal(size=(sizes[0], 1))
        return x, np.sin(2 * x[:, 0]) + 0.1 * rng.normal(size=len(x))
    if kind == "correlated":
        return (rng.normal(size=sizes),)
    group = rng.integers(sizes[1], size=sizes[0])
    return group, rng.normal(size=sizes[1])[group] + rng.normal(size=sizes[0])


def models(sizes: tuple[int, ...], ppl: Any, arrays: Any) -> dict[str, Callable[..., Any]]:
    """Return the models, which Pyro with torch and NumPyro with JAX write alike."""
    dist = ppl.distributions

    def process(x: Any, y: Any) -> None:
        scale = ppl.sample("scale", dist.LogNormal(0.0, 1.0))
        variance = ppl.sample("variance", dist.LogNormal(0.0, 1.0))
        noise = ppl.sample("noise", dist.LogNormal(-1.0, 1.0))
        distance = (x[:, None] - x[None]) / scale
        cov = variance * arrays.exp(-0.5 * distance**2) + noise * arrays.eye(len(x))
        zero = arrays.zeros(len(x))
        ppl.sample("y", dist.MultivariateNormal(zero, covariance_matrix=cov), obs=y)

    def network(x: Any, y: Any) -> None:
        h = sizes[-1]
        normal = lambda *shape: dist.Normal(arrays.zeros(shape), 1.0).to_event(len(shape))  # noqa: E731
        w1, b1 = ppl.sample("w1", normal(1, h)), ppl.sample("b1", normal(h))
        w2, b2 = ppl.sample("w2", normal(h, h)), ppl.sample("b2", normal(h))
        w3 = ppl.sample("w3", normal(h, 1))
        sd = ppl.sample("sd", dist.Gamma(3.0, 1.0))
        mean = arrays.tanh(arrays.tanh(x @ w1 + b1) @ w2 + b2) @ w3
        with ppl.plate("rows", len(x)):
            ppl.sample("y", dist.Normal(mean[:, 0], sd), obs=y)

    def correlated(y: Any) -> None:
        d = sizes[-1]
        sd = ppl.sample("sd", dist.HalfNormal(arrays.ones(d)).to_event(1))
        factor = ppl.sample("factor", dist.LKJCholesky(d, 1.0))
        with ppl.plate("rows", len(y)):
            ppl.sample(
                "y",
                dist.MultivariateNormal(arrays.zeros(d), scale_tril=sd[:, None] * factor),
                obs=y,
            )

    def hierarchical(group: Any, y: Any) -> None:
        mu = ppl.sample("mu", dist.Normal(0.0, 5.0))
        tau = ppl.sample("tau", dist.HalfNormal(2.0))
        with ppl.plate("groups", sizes[-1]):
            effect = ppl.sample("effect", dist.Normal(0.0, 1.0))
        sd = ppl.sample("sd", dist.HalfNormal(2.0))
        with ppl.plate("rows", len(y)):
            ppl.sample("y", dist.Normal(mu + tau * effect[group], sd), obs=y)

    return {f.__name__: f for f in (process, network, correlated, hierarchical)}


def probdl(kind: str, sizes: tuple[int, ...]) -> float:
    import pyro
    import torch

    from probdl import LogDensity
    from probdl.compile import choose

    torch.set_num_threads(1)
    model = models(sizes, pyro, torch)[kind]
    density = LogDensity.from_model(model, data(kind, sizes))
    compiled, _ = choose(density, "native", 0)
    point = density.initial(torch.Generator().manual_seed(1)).numpy().copy()
    return best(called(compiled.address, compiled.user, point))


def numpyro(kind: str, sizes: tuple[int, ...]) -> float:
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions
    from numpyro.infer.util import initialize_model

    numpyro.enable_x64()
    given = tuple(map(jnp.asarray, data(kind, sizes)))
    model = models(sizes, numpyro, jnp)[kind]
    start = initialize_model(jax.random.key(0), model, model_args=given)
    evaluate = jax.jit(jax.value_and_grad(start.potential_fn))
    point = start.param_info.z
    return seconds_in_jax(start.potential_fn, evaluate, point)


def measured(module: str, system: str, *arguments: Any) -> Any:
    """Run a benchmark in a separate process on one core, with an empty cache.

    Args:
        module: the name of the module, which prints its result as JSON.
        system: the package to time, the module's first argument.
        arguments: the others.
    """
    with one_core():
        return in_process(interpreter(system), module, system, *arguments, environment=ONE_CORE)


@contextmanager
def one_core() -> Iterator[None]:
    """Let processes that are started here run on one core: JAX takes its threads anyway."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def in_process(
    python: Path | str, module: str, *arguments: Any, environment: Mapping[str, str] | None = None
) -> Any:
    """Run a module that prints its result as JSON in a separate process, with an empty cache.

    Args:
        python: the interpreter.
        module: the name of the module.
        arguments: its arguments.
        environment: variables to add to the environment; None adds none.
    """
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            [python, "-m", module, *map(str, arguments)],
            cwd=ROOT,
            env=os.environ | dict(environment or {}) | {"PROBDL_CACHE": cache},
            capture_output=True,
            text=True,
            check=True,
        )
    return json.loads(done.stdout.splitlines()[-1])


def flops_per_second() -> float:
    """Measure the peak of one core by a matrix product."""
    from threadpoolctl import threadpool_limits

    square = np.random.default_rng(0).normal(size=(1000, 1000))
    with threadpool_limits(1):
        return 2 * 1000**3 / best(lambda: square @ square)


def main() -> None:
    from benchmarks.parts import RESULTS

    rows = []
    for name in MODELS:
        # One after the other, several times: the speed of the machine changes.
        pairs = [
            {s: measured("benchmarks.peers.matrices", s, name) for s in ("probdl", "numpyro")}
            for _ in range(REPEATS)
        ]
        times = {s: min(pair[s] for pair in pairs) for s in ("probdl", "numpyro")}
        rows.append({"model": name, **times, "ratio": times["probdl"] / times["numpyro"]})
        print(rows[-1], flush=True)
    peak = flops_per_second()
    (RESULTS / "matrices.json").write_text(
        json.dumps({"peak": peak, "rows": rows}, indent=1) + "\n"
    )
    lines = [
        "# Gradients beside NumPyro",
        "",
        "Made by `make bench-matrices`: value and gradient on one core, in microseconds, the best "
        f"of {REPEATS} processes each; NumPyro in a compiled loop. One core takes "
        f"{peak / 1e9:.0f} · 10⁹ operations a second in NumPy's product of matrices.",
        "",
        "| model | probdl, µs | NumPyro, µs | probdl / NumPyro |",
        "| --- | ---: | ---: | ---: |",
        *(
            f"| {r['model']} | {1e6 * r['probdl']:,.0f} | {1e6 * r['numpyro']:,.0f} | "
            f"{r['ratio']:.2f} |"
            for r in rows
        ),
    ]
    (RESULTS / "matrices.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    if sys.argv[1:]:
        print(json.dumps(globals()[sys.argv[1]](*MODELS[sys.argv[2]])))
    else:
        main()
