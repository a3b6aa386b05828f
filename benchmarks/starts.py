"""Number of NUTS chains that stay where they started, and gradients of warm-up, by kind of start.

``python -m benchmarks.starts [starts]`` writes results/starts.json and starts.md. Needs
PROBDL_SHARED.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyro
import pyro.distributions as dist
import torch

import probdl
from benchmarks.parts import RESULTS, run
from probdl.methods import approach
from probdl.methods.mcmc import nutpie_adapter
from tests.reference.files import read
from tests.reference.posteriors import POSTERIORS

SEEDS = range(1, 11)
INITS = ("random", "auto")
CHAINS = 4
DRAWS = 250

# Thousands of pelts a year that the Hudson's Bay Company bought, 1900 to 1920.
HARES = (
    "30 47.2 70.2 77.4 36.3 20.6 18.1 21.4 22 25.4 27.1 40.3 57 76.6 52.3 19.5 11.2 7.6 14.6 16.2 "
    "24.7"
)
LYNXES = "4 6.1 9.8 35.2 59.4 41.7 19 13 8.3 9.1 7.4 8 12.3 19.5 45.7 51.1 29.7 15.8 9.7 10.1 8.6"


def arma(y):
    """ARMA(1, 1) with wide priors, as in the Stan user's guide; explosive for abs(theta) > 1."""
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    phi = pyro.sample("phi", dist.Normal(0.0, 2.0))
    theta = pyro.sample("theta", dist.Normal(0.0, 2.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(5.0))
    error = y[0] - mu - phi * mu
    errors = [error]
    for t in range(1, len(y)):
        error = y[t] - mu - phi * y[t - 1] - theta * error
        errors.append(error)
    pyro.sample(
        "error", dist.Normal(torch.zeros(len(y)), sigma).to_event(1), obs=torch.stack(errors)
    )


def lotka_volterra(y, steps=10):
    """Predators and prey, by Runge-Kutta steps of a tenth of a year (Carpenter, 2018)."""
    alpha = pyro.sample("alpha", dist.LogNormal(0.0, 0.5))
    beta = pyro.sample("beta", dist.LogNormal(-3.0, 1.0))
    gamma = pyro.sample("gamma", dist.LogNormal(0.0, 0.5))
    delta = pyro.sample("delta", dist.LogNormal(-3.0, 1.0))
    start = pyro.sample("start", dist.LogNormal(torch.full((2,), 2.3), 1.0).to_event(1))
    sigma = pyro.sample("sigma", dist.LogNormal(torch.full((2,), -1.0), 1.0).to_event(1))

    def change(z):
        return torch.stack([(alpha - beta * z[1]) * z[0], (delta * z[0] - gamma) * z[1]])

    h, z, path = 1 / steps, start, [start]
    for _ in range(len(y) - 1):
        for _ in range(steps):
            k1 = change(z)
            k2 = change(z + h / 2 * k1)
            k3 = change(z + h / 2 * k2)
            k4 = change(z + h * k3)
            z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        path.append(z)
    with pyro.plate("year", len(y)):
        pyro.sample("y", dist.LogNormal(torch.stack(path).log(), sigma).to_event(1), obs=y)


def poisson_trend(year, count):
    """Counts with a cubic trend and uniform priors (Kéry and Schaub, 2012, chapter 3)."""
    alpha = pyro.sample("alpha", dist.Uniform(-20.0, 20.0))
    with pyro.plate("power", 3):
        beta = pyro.sample("beta", dist.Uniform(-10.0, 10.0))
    log_rate = alpha + beta[0] * year + beta[1] * year**2 + beta[2] * year**3
    with pyro.plate("year", len(year)):
        pyro.sample("count", dist.Poisson(log_rate.exp()), obs=count)


def weibull_frailty(x, patient, time, observed):
    """Accelerated failure times with a gamma frailty for each patient; some are censored."""
    intercept = pyro.sample("intercept", dist.Normal(0.0, 100.0))
    beta = pyro.sample("beta", dist.Normal(torch.zeros(x.shape[1]), 100.0).to_event(1))
    shape = pyro.sample("shape", dist.Gamma(1.0, 0.001))
    precision = pyro.sample("precision", dist.Gamma(0.001, 0.001))
    with pyro.plate("patient", int(patient.max()) + 1):
        frailty = pyro.sample("frailty", dist.Gamma(precision, precision))
    rate = frailty[patient] * torch.exp(-shape * (intercept + x @ beta))
    log_hazard = rate.log() + shape.log() + (shape - 1) * time.log()
    with pyro.plate("obs", len(time)):
        pyro.factor("survival", observed * log_hazard - rate * time**shape)


def _arma_data():
    rng = np.random.default_rng(1)
    noise = 0.5 * rng.standard_normal(200)
    y = np.zeros(200)
    for t in range(1, 200):
        y[t] = 0.2 + 0.7 * y[t - 1] + noise[t] + 0.4 * noise[t - 1]
    return (y,)


def _animals():
    return (np.array([HARES.split(), LYNXES.split()], float).T,)


def _falcons():
    rng = np.random.default_rng(2)
    t = np.arange(1.0, 41.0)
    count = rng.poisson(np.exp(3.5576 - 0.0912 * t + 0.0091 * t**2 - 0.00014 * t**3))
    return (t - t.mean()) / t.std(), count.astype(float)


def _kidneys():
    rng = np.random.default_rng(3)
    patient = np.repeat(np.arange(38), 2)
    x = np.stack([rng.uniform(-2, 2, 76), np.repeat(rng.integers(0, 2, 38), 2)], 1)
    frailty = rng.gamma(2.0, 0.5, 38)[patient]
    scale = np.exp(4 + x @ [0.1, 0.8]) * frailty ** (-1 / 1.2)
    time = scale * rng.weibull(1.2, 76)
    censored = rng.exponential(400.0, 76)
    return x, patient, np.minimum(time, censored), (time <= censored).astype(float)


HARD: dict[str, tuple[Callable[..., Any], Callable[[], tuple[Any, ...]]]] = {
    "arma": (arma, _arma_data),
    "lotka_volterra": (lotka_volterra, _animals),
    "poisson_trend": (poisson_trend, _falcons),
    "weibull_frailty": (weibull_frailty, _kidneys),
}


def _models() -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    models = {name: (model, data()) for name, (model, data) in HARD.items()}
    folder = Path(os.environ["PROBDL_SHARED"]) / "posteriordb"
    for name, posterior in POSTERIORS.items():
        models[name.split("-")[1]] = (posterior.model, posterior.arguments(read(folder, name)[0]))
    return models


def _stuck(fit: probdl.Fit) -> int:
    """Count the chains whose log densities are far below those of the best chain."""
    lp = np.median(fit.stats["lp"], 1)
    scalars = sum(int(np.prod(draws.shape[2:])) for draws in fit.draws.values())
    return int((lp < lp.max() - 20 - scalars).sum())


class _Counted:
    """Counts the gradients of warm-up while it is active: of transitions, and of the ascents."""

    def __init__(self) -> None:
        self.transitions = self.ascents = 0
        self._read = nutpie_adapter._read  # nutpie keeps the statistics of warm-up, fits do not
        self._evaluate = approach.TypicalStarts._evaluate

    def __enter__(self) -> Self:
        def read_tables(points: Any, stats: Any, **options: Any) -> Any:
            for table in stats:
                columns = (table.column(name) for name in ("n_steps", "tuning"))
                steps, tuning = map(nutpie_adapter._numpy, columns)
                self.transitions += int(steps[tuning].sum())
            return self._read(points, stats, **options)

        def evaluate(starts: Any, z: Any) -> Any:
            self.ascents += 1
            return self._evaluate(starts, z)

        nutpie_adapter._read = read_tables
        approach.TypicalStarts._evaluate = evaluate  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        nutpie_adapter._read = self._read
        approach.TypicalStarts._evaluate = self._evaluate  # type: ignore[method-assign]


def starts() -> dict[str, Any]:
    """Sample each model with each kind of start, over ten seeds."""
    found: dict[str, Any] = {}
    for name, (model, args) in _models().items():
        found[name] = {}
        for init in INITS:
            stuck = told = disagree = 0
            with _Counted() as counted:
                for seed in SEEDS:
                    method = probdl.NUTS(draws=DRAWS, chains=CHAINS, init=init)
                    fit = probdl.infer(model, *args, method=method, seed=seed, progress=False)
                    stuck += (count := _stuck(fit))
                    told += bool(count) and "stuck_chain" in {f.check for f in fit.diagnose()}
                    disagree += float(fit.summary()["r_hat"].max()) > 1.1
            found[name][init] = {
                "stuck": stuck,
                "told": told,
                "disagree": disagree,
                "transitions": round(counted.transitions / len(SEEDS)),
                "ascents": round(counted.ascents / len(SEEDS)),
            }
            print(name, init, found[name][init], flush=True)
    return found


def write(results: dict[str, Any]) -> None:
    """Write results/starts.md."""
    chains = CHAINS * len(SEEDS)
    lines = [
        "# Starts of Markov chains",
        "",
        f"Measured by `make bench-starts`: NUTS with {CHAINS} chains, 1,000 warm-up transitions "
        f"and {DRAWS} draws, {len(SEEDS)} seeds, so {chains} chains for each model and kind of "
        "start. "
        '`init="random"` starts at uniform(-2, 2) on R^d; `init="auto"`, the default, climbs from '
        "there to the typical set. The first four models are known for chains that stay where they "
        "started, the others are the reference posteriors of the tests.",
        "",
        "*Stuck* is the number of chains whose log density is, in the median, more than 20 + d "
        "nats below that of the best chain. *R-hat* is the number of fits with an R-hat above 1.1. "
        "*Gradients* is the number of gradient evaluations before the first draw, of all chains of "
        "one fit together; those of the ascents are included, and shown separately.",
        "",
        "| model | stuck, random | stuck, auto | R-hat, random | R-hat, auto | gradients, random "
        "| gradients, auto | of these, ascents | auto / random |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, rows in results["starts"].items():
        before, after = (rows[init] for init in INITS)
        total = after["transitions"] + after["ascents"]
        lines.append(
            f"| {name} | {before['stuck']} | {after['stuck']} | {before['disagree']} "
            f"| {after['disagree']} | {before['transitions']:,} | {total:,} | {after['ascents']:,} "
            f"| {total / before['transitions']:.2f} |"
        )
    (RESULTS / "starts.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    run("starts", {"starts": starts}, write)
