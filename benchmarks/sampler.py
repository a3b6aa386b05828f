"""The sampler in C beside nutpie's: `make bench-sampler`.

``python -m benchmarks.sampler [posteriors | sizes | many | calibration]`` writes the results to
sampler.json and sampler.md. Both samplers call the same compiled density. Needs PROBDL_SHARED.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import torch

import probdl
from benchmarks.parts import RESULTS, run
from probdl.io.idata import to_idata
from probdl.methods.base import Method
from probdl.model.program import Program
from probdl.models import eight_schools, logistic_regression, normal_normal
from tests.reference.files import read, scalars
from tests.reference.posteriors import POSTERIORS

SAMPLERS = ("native", "nutpie")
SEEDS = (1, 2, 3, 4)
SIZES = (10, 100, 1000, 10_000)
MANY = (1000, 10_000, 100_000)
REPEATS = 3
SIMULATIONS, CALIBRATION_DRAWS = 1000, 400
MEAN_ERRORS_MAX, SD_ERROR_MAX, RHAT_MAX = 4.5, 0.15, 1.02


def _independent(y):
    with pyro.plate("d", len(y)):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)


def _judged(draws: dict[str, np.ndarray], reference: Any, count: int) -> dict[str, Any]:
    """Compare draws with the reference, parameter by parameter."""
    kept = to_idata({"posterior": {name: draws[name] for name in reference}})
    sizes, errors, rhats = az.ess(kept), az.mcse(kept), az.rhat(kept)
    wrong = []
    for name, known in reference.items():
        error = np.hypot(float(errors[name]), known["sd"] / count**0.5)
        mean_off = abs(draws[name].mean() - known["mean"]) > MEAN_ERRORS_MAX * error
        sd_off = abs(draws[name].std() / known["sd"] - 1) > SD_ERROR_MAX
        if mean_off or sd_off or float(rhats[name]) > RHAT_MAX:
            wrong.append(name)
    ess = [float(sizes[name]) for name in reference]
    return {"min_ess": min(ess), "mean_ess": float(np.mean(ess)), "wrong": wrong}


def posteriors() -> dict[str, Any]:
    """Sample the posteriors that have reference draws."""
    folder = Path(os.environ["PROBDL_SHARED"]) / "posteriordb"
    found: dict[str, Any] = {}
    for name, posterior in POSTERIORS.items():
        data, reference, count = read(folder, name)
        rows: dict[str, Any] = {}
        for sampler in SAMPLERS:
            runs = []
            for seed in SEEDS:
                fit = probdl.infer(
                    posterior.model,
                    *posterior.arguments(data),
                    method=probdl.NUTS(sampler=sampler),
                    seed=seed,
                    progress=False,
                )
                draws = scalars(posterior.parameters(fit.draws, data))
                runs.append(
                    {
                        **_judged(draws, reference, count),
                        "gradients": int(fit.stats["n_steps"].sum()),
                        "seconds": fit.timings["sampling"],
                        "divergences": int(fit.stats["diverging"].sum()),
                    }
                )
            rows[sampler] = runs
        found[name.split("-", 1)[1]] = rows
        print(name, rows, flush=True)
    return found


def sizes() -> dict[str, Any]:
    """Time transitions on independent normal variables with a diagonal metric, one chain."""
    found = {}
    for d in SIZES:
        y = torch.randn(d, generator=torch.Generator().manual_seed(0))
        draws = int(np.clip(2e6 / d, 200, 20_000))
        method = {"draws": draws, "warmup": 300, "chains": 1, "mass_matrix": "diag"}
        best: dict[str, float] = {}
        for repeat in range(REPEATS):
            for sampler in SAMPLERS:
                fit = probdl.infer(
                    _independent,
                    y,
                    method=probdl.NUTS(sampler=sampler, **method),
                    seed=repeat,
                    progress=False,
                )
                # Warm-up transitions take as many gradients as the others, but for the first.
                gradients = fit.stats["n_steps"].mean() * (draws + method["warmup"])
                each = fit.timings["sampling"] / gradients * 1e6
                best[sampler] = min(best.get(sampler, np.inf), each)
        found[str(d)] = best
        print(d, best, flush=True)
    return found


def many() -> dict[str, Any]:
    """Time the parts of a call for many independent normal variables, as users make it."""
    found = {}
    for d in MANY:
        y = torch.randn(d, generator=torch.Generator().manual_seed(0))
        method = probdl.NUTS(draws=200, warmup=200, chains=2)
        best: dict[str, float] = {}
        for seed in range(REPEATS):
            fit = probdl.infer(_independent, y, method=method, seed=seed, progress=False)
            if not best or fit.timings["total"] < best["total"]:
                gradients = fit.stats["n_steps"].mean() * 400
                best = {**fit.timings, "gradient": fit.timings["sampling"] / gradients}
        found[str(d)] = best
        print(d, best, flush=True)
    return found


def _correlated(x, y):
    """A regression whose predictors are almost the same."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    sigma = pyro.sample("sigma", dist.LogNormal(0.0, 0.5))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(a + x @ b, sigma), obs=y)


def _groups(group, y):
    """Counts in groups of unequal size, whose rates share a distribution."""
    mean = pyro.sample("mean", dist.Normal(1.0, 1.0))
    spread = pyro.sample("spread", dist.LogNormal(-1.0, 0.5))
    with pyro.plate("groups", 6):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(group)):
        pyro.sample("y", dist.Poisson(torch.exp(mean + spread * z)[group]), obs=y)


def _calibrated_models() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(30, 1))
    group = np.repeat(np.arange(6), [2, 2, 3, 4, 6, 9])
    return {
        "normal_normal": (normal_normal, (np.array([1.0, 2.0, 1.5]), np.zeros(3))),
        "eight_schools": (eight_schools, (np.linspace(9.0, 18.0, 8), np.zeros(8))),
        "logistic_regression": (logistic_regression, (rng.normal(size=(50, 3)), np.zeros(50))),
        "correlated": (_correlated, (shared + 0.1 * rng.normal(size=(30, 3)), np.zeros(30))),
        "groups": (_groups, (group, np.zeros(len(group)))),
    }


@dataclass(frozen=True, repr=False)
class _Extended(Method, name="extended"):
    """Half of the draws, and then the other half by ``extend``."""

    mass_matrix: str = "diag"

    def run(self, program: Program, seed: int, progress: bool | None) -> probdl.Fit:
        """Fit and extend."""
        half = _of_one_chain(self.mass_matrix, CALIBRATION_DRAWS // 2)
        return half.extend(half.run(program, seed, False), CALIBRATION_DRAWS // 2, False)


def _of_one_chain(mass_matrix: str, draws: int) -> probdl.NUTS:
    return probdl.NUTS(sampler="native", mass_matrix=mass_matrix, draws=draws, warmup=500, chains=1)


def calibration() -> dict[str, Any]:
    """Test the C sampler by simulation-based calibration."""
    found: dict[str, Any] = {}
    for name, (model, arguments) in _calibrated_models().items():
        for matrix in ("diag", "low_rank"):
            for extended in (False, True):
                method = _Extended(matrix) if extended else _of_one_chain(matrix, CALIBRATION_DRAWS)
                tested = probdl.montecarlo.calibrate(
                    model, method, arguments, simulations=SIMULATIONS, seed=1, progress=False
                )
                found[f"{name}, {matrix}{', extended' * extended}"] = {
                    "simulations": int(tested.ranks.sizes["simulation"]),
                    "scalars": len(tested.table),
                    "least_p": float(tested.table["p_value"].min()),
                    "calibrated": tested.calibrated,
                }
                print(name, matrix, extended, tested.calibrated, flush=True)
    return found


def _efficiency(runs: list[dict[str, Any]], what: str) -> float:
    return float(np.exp(np.mean([np.log(run[what] / run["gradients"]) for run in runs])))


def write(results: dict[str, Any]) -> None:
    """Write results/sampler.md."""
    lines = [
        "# The sampler in C",
        "",
        'Measured by `make bench-sampler`: `NUTS(sampler="native")` beside `NUTS(sampler="nutpie")`'
        f", 4 chains with 1,000 warm-up transitions and 1,000 draws, seeds {SEEDS[0]} to "
        f"{SEEDS[-1]}, on the same compiled density.",
        "",
        "*ESS a gradient* is the effective sample size divided by the gradients after warm-up, as "
        "the ratio of the two samplers, for the mean over the parameters and for the smallest. "
        "*Right*: runs in which every parameter has its mean within "
        f"{MEAN_ERRORS_MAX} standard errors of the reference, its standard deviation within "
        f"{SD_ERROR_MAX:.0%}, and R-hat below {RHAT_MAX}.",
        "",
        "| posterior | ESS a gradient, C / nutpie | smallest | seconds, C / nutpie | right, C "
        "| right, nutpie |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    ratios = []
    for name, rows in results["posteriors"].items():
        ours, theirs = (rows[sampler] for sampler in SAMPLERS)
        mean, least = (
            _efficiency(ours, what) / _efficiency(theirs, what) for what in ("mean_ess", "min_ess")
        )
        seconds = [np.median([run["seconds"] for run in of]) for of in (ours, theirs)]
        right = [sum(not run["wrong"] for run in of) for of in (ours, theirs)]
        ratios.append((mean, least, seconds[0] / seconds[1]))
        lines.append(
            f"| {name} | {mean:.2f} | {least:.2f} | {ratios[-1][2]:.2f} "
            f"| {right[0]} of {len(ours)} | {right[1]} of {len(theirs)} |"
        )
    means = np.exp(np.mean(np.log(ratios), 0))
    lines += [
        f"| geometric mean | {means[0]:.2f} | {means[1]:.2f} | {means[2]:.2f} | | |",
        "",
        "## Time of a gradient with its share of the transition",
        "",
        "Independent normal variables, a diagonal metric, one chain; the fastest of "
        f"{REPEATS} runs.",
        "",
        "| variables | µs, C | µs, nutpie | C / nutpie |",
        "| ---: | ---: | ---: | ---: |",
        *(
            f"| {int(d):,} | {of['native']:.2f} | {of['nutpie']:.2f} "
            f"| {of['native'] / of['nutpie']:.2f} |"
            for d, of in results["sizes"].items()
        ),
        "",
        "## Calls for many variables",
        "",
        "The same variables, two chains of 200 + 200 draws on two cores with the default metric; "
        f"the fastest of {REPEATS} calls.",
        "",
        "| variables | call, s | after sampling / sampling | a gradient with its transition, µs |",
        "| ---: | ---: | ---: | ---: |",
        *(
            f"| {int(d):,} | {of['total']:.2f} "
            f"| {(of['checks'] + of['other']) / of['sampling']:.2f} | {of['gradient'] * 1e6:.1f} |"
            for d, of in results["many"].items()
        ),
        "",
        "## Simulation-based calibration",
        "",
        f"{SIMULATIONS:,} data sets from the prior of each model, {CALIBRATION_DRAWS} draws of one "
        "chain each; *extended*: half of the draws by `extend`. *Least p* is the smallest p-value "
        "of all scalars, to be compared with 0.01 divided by their number.",
        "",
        "| model | scalars | least p | uniform |",
        "| --- | ---: | ---: | --- |",
        *(
            f"| {name} | {of['scalars']} | {of['least_p']:.2g} "
            f"| {'yes' if of['calibrated'] else 'NO'} |"
            for name, of in results["calibration"].items()
        ),
        "",
    ]
    (RESULTS / "sampler.md").write_text("\n".join(lines))


if __name__ == "__main__":
    parts = {"posteriors": posteriors, "sizes": sizes, "many": many, "calibration": calibration}
    run("sampler", parts, write)
