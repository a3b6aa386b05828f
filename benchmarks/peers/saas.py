"""Fully Bayesian Gaussian processes in BoTorch: `make bench-saas`.

The last release of BoTorch that fits by Pyro has a model, which goes into ``probdl.infer``
unchanged; the newest fits by NumPyro. Each fit is the first call of a process, with an empty cache,
imports excluded, until the draws are in BoTorch's Gaussian process. Writes results/saas.json and
results/saas.md. Numbers of points as arguments measure these only; ``SYSTEM POINTS SEED`` runs
one fit in this process.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from importlib.metadata import version
from typing import Any

import numpy as np

from benchmarks.peers.matrices import in_process
from benchmarks.peers.systems import ROOT

DIMENSIONS, POINTS, SEEDS = 20, (50, 100, 200, 400), (0, 1, 2)
WARMUP, DRAWS, MAX_TREEDEPTH = 512, 256, 6  # BoTorch's
TEST_POINTS = 500
SYSTEMS = {"probdl": ".venv-botorch-pyro", "botorch": ".venv-botorch"}


def function(x: np.ndarray) -> np.ndarray:
    """Return a function of three of the inputs, (n, 1)."""
    return np.sin(6 * x[:, :1]) + 4 * (x[:, 1:2] - 0.5) ** 2 + x[:, 2:3]


def data(points: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return inputs and standardised outputs with noise, and new inputs with exact outputs."""
    rng = np.random.default_rng(points)
    x, new = rng.uniform(size=(points, DIMENSIONS)), rng.uniform(size=(TEST_POINTS, DIMENSIONS))
    y = function(x) + 0.05 * rng.normal(size=(points, 1))
    return x, (y - y.mean()) / y.std(), new, (function(new) - y.mean()) / y.std()


def fitted(system: str, gp: Any, seed: int) -> None:
    """Fit a Gaussian process of BoTorch, and hold all draws in it."""
    if system == "botorch":
        from botorch.fit import fit_fully_bayesian_model_nuts

        fit_fully_bayesian_model_nuts(gp, thinning=1, disable_progbar=True, seed=seed)
        return
    import torch

    import probdl

    method = probdl.NUTS(chains=1, warmup=WARMUP, draws=DRAWS, max_treedepth=MAX_TREEDEPTH)
    fit = probdl.infer(gp.pyro_model.sample, method=method, seed=seed)
    draws = {site: torch.as_tensor(array[0].copy()) for site, array in fit.draws.items()}
    gp.load_mcmc_samples(gp.pyro_model.postprocess_mcmc_samples(draws))
    gp.eval()


def run(system: str, points: int, seed: int) -> dict[str, Any]:
    """Fit once; return the seconds, the draws, the error of predictions and the versions."""
    import torch
    from botorch.models.fully_bayesian import SaasFullyBayesianSingleTaskGP

    warnings.simplefilter("ignore")
    torch.set_default_dtype(torch.float64)
    x, y, new, exact = map(torch.as_tensor, data(points))
    if system == "probdl":
        import probdl  # noqa: F401
    gp = SaasFullyBayesianSingleTaskGP(x, y)
    start = time.perf_counter()
    fitted(system, gp, seed)
    seconds = time.perf_counter() - start
    kernel = gp.covar_module
    draws = torch.cat(
        [
            kernel.base_kernel.lengthscale.reshape(DRAWS, -1)[:, :3],
            kernel.outputscale.reshape(DRAWS, 1),
            gp.likelihood.noise.reshape(DRAWS, 1),
            gp.mean_module.constant.reshape(DRAWS, 1),
        ],
        1,
    )
    with torch.no_grad():
        mean = gp.posterior(new).mean.mean(0)
    names = ("probdl", "torch") if system == "probdl" else ("numpyro", "jax")
    return {
        "seconds": seconds,
        "error": float(((mean - exact) ** 2).mean().sqrt()),
        "draws": draws.detach().log().nan_to_num().tolist(),
        "versions": {name: version(name) for name in ("botorch", *names)},
    }


def measured(system: str, points: int, seed: int) -> dict[str, Any]:
    """Run a fit in a separate process, on all cores."""
    python = ROOT / SYSTEMS[system] / "bin" / "python"
    found = in_process(python, "benchmarks.peers.saas", system, points, seed)
    found["ess"] = least_ess(np.array(found.pop("draws")))
    return found


def least_ess(draws: np.ndarray) -> float:
    """Return the least bulk ESS of draws (n, parameters)."""
    import arviz as az

    return min(float(az.ess(column[None])) for column in draws.T)


def compared(points: int) -> dict[str, Any]:
    """Run both systems with all seeds, one after the other: the speed of the machine changes."""
    runs = [{system: measured(system, points, seed) for system in SYSTEMS} for seed in SEEDS]
    row: dict[str, Any] = {"versions": {s: found["versions"] for s, found in runs[0].items()}}
    for system in SYSTEMS:
        row[system] = {
            name: float(np.median([run[system][name] for run in runs]))
            for name in ("seconds", "error", "ess")
        }
    return row


def main() -> None:
    """Compare at the numbers of points of the command line, or at all; keep other stored rows."""
    from benchmarks.parts import RESULTS

    held = RESULTS / "saas.json"
    rows = json.loads(held.read_text()) if held.exists() else {}
    for points in sys.argv[1:] or map(str, POINTS):
        rows[points] = compared(int(points))
        print(points, rows[points], flush=True)
        held.write_text(json.dumps(rows, indent=1) + "\n")
        (RESULTS / "saas.md").write_text(report(rows))


def report(rows: dict[str, dict[str, Any]]) -> str:
    """Return the page."""
    versions = next(iter(rows.values()))["versions"].values()
    named = [", ".join(f"{name} {number}" for name, number in of.items()) for of in versions]
    lines = [
        "# Fully Bayesian Gaussian processes beside BoTorch",
        "",
        "Made by `make bench-saas`: BoTorch's Gaussian process with the sparse axis-aligned prior, "
        f"{DIMENSIONS} inputs of which three matter, {WARMUP} warm-up iterations and {DRAWS} draws "
        "of one chain, as BoTorch fits it. On the left the Pyro model of BoTorch's last release "
        f"that fits by Pyro, passed to `probdl.infer` unchanged ({named[0]}); on the right the "
        f"newest release, which fits by NumPyro ({named[1]}). The first call in a process, with an "
        "empty cache and without imports, until the draws are in BoTorch's model; medians of "
        f"{len(SEEDS)} seeds. ESS: the least of three length scales, output scale, noise and mean; "
        "error: root mean square of predictions at new points, in standard deviations of the data.",
        "",
        "| points | probdl, s | BoTorch, s | ratio | ESS | BoTorch | error | BoTorch |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for points, row in sorted(rows.items(), key=lambda item: int(item[0])):
        ours, theirs = row["probdl"], row["botorch"]
        lines.append(
            f"| {points} | {ours['seconds']:.1f} | {theirs['seconds']:.1f} | "
            f"{ours['seconds'] / theirs['seconds']:.2f} | {ours['ess']:.0f} | "
            f"{theirs['ess']:.0f} | {ours['error']:.3f} | {theirs['error']:.3f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1] in SYSTEMS:
        print(json.dumps(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
    else:
        main()
