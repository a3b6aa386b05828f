"""Gain and cost of a low-rank mass matrix for NUTS.

``python -m benchmarks.mass_matrix [gain | cost | cutoff]`` writes results/mass_matrix.json and
mass_matrix.md. Needs PROBDL_SHARED.
"""

from __future__ import annotations

import functools
from statistics import median
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch

import probdl
from benchmarks.parts import RESULTS, run
from benchmarks.peers.judge import judge
from benchmarks.peers.tasks import TASKS, load
from probdl.methods.mcmc import nutpie_adapter

MATRICES = ("diag", "low_rank")
SIZES = (5, 10, 25, 50, 100, 200, 400)
SEEDS = (1, 2, 3)
CUTOFFS = (0.0, 2.0, 4.0, 10.0)  # 0 stands for a diagonal matrix


def _independent(d: int) -> None:
    pyro.sample("x", dist.Normal(torch.zeros(d), 1.0).to_event(1))


def _ridge(speed: Any, distance: Any) -> None:
    """Two positive coefficients that the data hardly separate: a curved ridge on R^d."""
    reaction = pyro.sample("reaction", dist.HalfNormal(2.0))
    braking = pyro.sample("braking", dist.HalfNormal(0.2))
    spread = pyro.sample("spread", dist.HalfNormal(2.0))
    with pyro.plate("car", len(speed)):
        mean = reaction * speed + braking * speed**2
        pyro.sample("distance", dist.Normal(mean, spread * speed), obs=distance)


def _funnel() -> None:
    v = pyro.sample("v", dist.Normal(0.0, 2.0))
    pyro.sample("x", dist.Normal(torch.zeros(5), torch.exp(v / 2)).to_event(1))


def _sampled(model: Any, args: Any, matrix: str, seed: int) -> tuple[probdl.Fit, float]:
    method = probdl.NUTS(mass_matrix=matrix, sampler="nutpie")
    fit = probdl.infer(model, *args, method=method, seed=seed, progress=False)
    return fit, fit.timings["sampling"]


def gain() -> dict[str, Any]:
    """Sample the tasks of the comparison with other systems, with both kinds of matrix."""
    found = {}
    for name in TASKS:
        task = load(name)
        model, args = task.pyro(task.data())
        rows = {}
        for matrix in MATRICES:
            fit, seconds = _sampled(model, args, matrix, 1)
            verdict = judge(name, task.parameters(dict(fit.draws)))
            rows[matrix] = {
                "gradients": int(fit.stats["n_steps"].sum()),
                "min_ess": verdict["min_ess"],
                "seconds": seconds,
                "right": verdict["right"],
            }
        found[name] = {"dim": probdl.LogDensity.from_model(model, args).dim, "rows": rows}
        print(name, found[name], flush=True)
    return found


def cost() -> dict[str, Any]:
    """Time independent normal variables, which have no correlations to learn."""
    return {
        str(d): {
            matrix: median(
                _sampled(functools.partial(_independent, d), (), matrix, seed)[1] for seed in SEEDS
            )
            for matrix in MATRICES
        }
        for d in SIZES
    }


def cutoff() -> dict[str, Any]:
    """Sample two curved and two other posteriors with several cutoffs for the directions."""
    speed = np.linspace(4.0, 25.0, 50)
    noise = np.random.default_rng(0).normal(size=50)
    distance = 1.2 * speed + 0.09 * speed**2 + speed * noise
    jobs = {"ridge": (_ridge, (speed, distance)), "funnel": (_funnel, ())}
    for name in ("kidscore_interaction", "diamonds"):
        task = load(name)
        jobs[name] = task.pyro(task.data())
    kept = nutpie_adapter._CUTOFFS["low_rank"]
    found: dict[str, Any] = {}
    for name, (model, args) in jobs.items():
        found[name] = {}
        for limit in CUTOFFS:
            nutpie_adapter._CUTOFFS["low_rank"] = limit or kept
            fits = [
                _sampled(model, args, "low_rank" if limit else "diag", seed)[0] for seed in SEEDS
            ]
            found[name][str(limit)] = {
                "divergences": median(int(f.stats["diverging"].sum()) for f in fits),
                "gradients": median(int(f.stats["n_steps"].sum()) for f in fits),
                "min_ess": median(float(f.summary()["ess_bulk"].min()) for f in fits),
            }
            print(name, limit, found[name][str(limit)], flush=True)
    nutpie_adapter._CUTOFFS["low_rank"] = kept
    return found


def write(results: dict[str, Any]) -> None:
    """Write results/mass_matrix.md."""
    lines = [
        "# The mass matrix of NUTS",
        "",
        'Measured by `make bench-mass` with `NUTS(sampler="nutpie")`: 4 chains with 1,000 warm-up '
        'iterations and 1,000 draws each. There, `mass_matrix="auto"` is low-rank up to 50 '
        "coordinates and diagonal above. The default sampler tests whether correlations are there.",
        "",
        "## Gain",
        "",
        "The tasks of the [comparison with other systems](peers.md). *Gradients* is the number of "
        "gradient evaluations after warm-up. *Minimum ESS* is the smallest bulk effective sample "
        "size of any parameter.",
        "",
        "| task | d | gradients, diagonal | gradients, low-rank | minimum ESS, diagonal "
        "| minimum ESS, low-rank | sampling, s, diagonal | sampling, s, low-rank "
        "| ESS/s, low-rank / diagonal |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, task in results["gain"].items():
        diag, low = (task["rows"][m] for m in MATRICES)
        ratio = low["min_ess"] / low["seconds"] / (diag["min_ess"] / diag["seconds"])
        ess = [f"{r['min_ess']:,.0f}{'' if r['right'] else ' (WRONG)'}" for r in (diag, low)]
        lines.append(
            f"| {name} | {task['dim']} | {diag['gradients']:,} | {low['gradients']:,} | {ess[0]} "
            f"| {ess[1]} | {diag['seconds']:.3g} | {low['seconds']:.3g} | {ratio:.2g} |"
        )
    lines += [
        "",
        "## Cost",
        "",
        "Independent normal variables have no correlations to learn, so the difference is the "
        "cost of estimating the low-rank matrix.",
        "",
        "| d | sampling, s, diagonal | sampling, s, low-rank |",
        "| ---: | ---: | ---: |",
        *(
            f"| {d} | {row['diag']:.3f} | {row['low_rank']:.3f} |"
            for d, row in results["cost"].items()
        ),
        "",
        "## Cutoff for the directions",
        "",
        "The low-rank matrix corrects a direction if the variance along it is larger than the "
        "diagonal matrix implies by at least the cutoff factor, or smaller by that factor. "
        "nutpie's default "
        'cutoff is 2; `mass_matrix="low_rank"` uses 4. *Ridge*: two positive coefficients that '
        "the data can hardly separate. *Funnel*: Neal's funnel with five dimensions. Medians over "
        "three seeds.",
        "",
        "| posterior | cutoff | divergences | gradients | minimum ESS |",
        "| --- | --- | ---: | ---: | ---: |",
        *(
            f"| {name} | {'diagonal' if limit == '0.0' else limit} | {row['divergences']} "
            f"| {row['gradients']:,} | {row['min_ess']:,.0f} |"
            for name, rows in results["cutoff"].items()
            for limit, row in rows.items()
        ),
        "",
    ]
    (RESULTS / "mass_matrix.md").write_text("\n".join(lines))


if __name__ == "__main__":
    run("mass_matrix", {"gain": gain, "cost": cost, "cutoff": cutoff}, write)
