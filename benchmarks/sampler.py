"""The sampler in C beside nutpie's: `make bench-sampler`.

``python -m benchmarks.sampler [posteriors | sizes]`` writes results/sampler.json and sampler.md.
Both samplers call the same compiled density. Needs PROBDL_SHARED.
"""

from __future__ import annotations

import os
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
from tests.reference.files import read, scalars
from tests.reference.posteriors import POSTERIORS

SAMPLERS = ("native", "nutpie")
SEEDS = (1, 2, 3, 4)
SIZES = (10, 100, 1000, 10_000)
REPEATS = 3
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
    ]
    (RESULTS / "sampler.md").write_text("\n".join(lines))


if __name__ == "__main__":
    run("sampler", {"posteriors": posteriors, "sizes": sizes}, write)
