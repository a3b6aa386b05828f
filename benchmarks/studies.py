"""Studies of estimators and calibration: `make bench-studies`.

Writes results/studies.json, results/studies.md and two plots. The comparison with PyMC and simuk
runs in a separate environment created by make; it is skipped if that environment does not exist.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch

import probdl
from benchmarks.models import SCHOOLS
from benchmarks.parts import RESULTS, run
from probdl.models import eight_schools
from probdl.montecarlo import calibrate, expectation, study
from probdl.plots import plot_calibration, plot_study

PEER = Path(__file__).parents[1] / ".venv-simuk" / "bin" / "python"
SIMULATIONS, PEER_SIMULATIONS, RUNS = 500, 20, 50


def normal(y: Any) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    variance = pyro.sample("variance", dist.Exponential(0.1))
    with pyro.plate("obs", len(y)):
        pyro.sample("y", dist.Normal(mu, variance.sqrt()), obs=y)


def fits() -> dict[str, Any]:
    """Time 1,000 maximum-likelihood fits of a normal model, including compilation."""
    truth = {"mu": 1.0, "variance": 4.0}
    start = time.perf_counter()
    study(normal, "mle", truth, sizes=[50], replicates=1000, seed=1)
    taken = time.perf_counter() - start
    sizes = [5, 10, 20, 50, 100, 200, 500, 1000]
    found = study(normal, probdl.MLE(starts=1), truth, sizes=sizes, replicates=1000, seed=2)
    axes = plot_study(found)
    axes[0, 0].figure.savefig(RESULTS / "study_normal.png", dpi=80)
    variance = found.sel(parameter="variance")
    return {
        "seconds_1000": taken,
        "rate": float(found.variance_rate.sel(parameter="mu")),
        "rate_se": float(found.variance_rate_se.sel(parameter="mu")),
        "bias": [
            {"n": n, "bias": float(b), "se": float(s), "theory": -4.0 / n}
            for n, b, s in zip(sizes, variance.bias, variance.bias_se, strict=True)
        ],
    }


def calibration() -> dict[str, Any]:
    """Time the calibration of NUTS on eight schools."""
    method = probdl.NUTS(draws=1000, warmup=1000, chains=1, target_accept=0.9)
    start = time.perf_counter()
    found = calibrate(
        eight_schools, method, (SCHOOLS[0], np.zeros(8)), simulations=SIMULATIONS, seed=1
    )
    taken = time.perf_counter() - start
    plot_calibration(found).figure.savefig(RESULTS / "calibration_schools.png", dpi=80)
    return {
        "seconds": taken,
        "simulations": SIMULATIONS,
        "least_p": float(found.table.p_value.min()),
        "outside_band": int(found.table.outside_band.sum()),
        "calibrated": found.calibrated,
    }


PEER_SCRIPT = """
import json, logging, sys, time, warnings
warnings.simplefilter("ignore")
logging.disable(logging.WARNING)
import numpy as np, pymc as pm, simuk
sigma = np.array(json.loads(sys.argv[1]))
with pm.Model() as model:
    mu = pm.Normal("mu", 0, 5)
    tau = pm.HalfCauchy("tau", 5)
    raw = pm.Normal("theta_trans", 0, 1, shape=8)
    pm.Normal("y", mu + tau * raw, sigma, observed=np.zeros(8))
start = time.perf_counter()
simuk.SBC(
    model, num_simulations=int(sys.argv[2]),
    sample_kwargs=dict(draws=1000, tune=1000, chains=1, cores=1, target_accept=0.9,
                       nuts_sampler=sys.argv[3], progressbar=False),
).run_simulations()
print(json.dumps(dict(seconds=time.perf_counter() - start, pymc=pm.__version__)))
"""


def peer() -> dict[str, Any] | None:
    """Time the same with PyMC and simuk, for fewer simulations."""
    if not PEER.exists():
        return None
    results = {}
    for sampler in ("pymc", "nutpie"):
        with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
            script.write(PEER_SCRIPT)
            script.flush()
            command = [str(PEER), script.name, json.dumps([float(s) for s in SCHOOLS[0]]),
                       str(PEER_SIMULATIONS), sampler]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(done.stderr[-2000:], file=sys.stderr)
            results[sampler] = None
            continue
        results[sampler] = json.loads(done.stdout.splitlines()[-1])
    return results


def reductions() -> list[dict[str, Any]]:
    """Estimate known integrals and the variance reduction of each way of sampling."""
    square = dist.Uniform(torch.zeros(2), 1.0).to_event(1)
    cube = dist.Uniform(torch.zeros(5), 1.0).to_event(1)
    pair = dist.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.5, 1.0]]))
    heavy = 4**0.75 * math.gamma(1.25) ** 2 / (math.sqrt(math.pi) * math.gamma(2))
    cases: dict[str, tuple[Callable[[Any], Any], Any, float, dict[str, Any]]] = {
        "π, by a quarter of a disc": (
            lambda x: 4.0 * (x.square().sum(-1) < 1), square, math.pi,
            {"control": (lambda x: x.square().sum(-1), 2 / 3)},
        ),
        "P(X > 0, Y > 0), normal, correlation 1/2": (
            lambda x: (x > 0).all(-1), pair, 0.25 + math.asin(0.5) / (2 * math.pi),
            {"control": (lambda x: x, [0.0, 0.0])},
        ),
        "E exp(mean of 5 uniforms)": (
            lambda x: torch.exp(x.sum(-1) / 5), cube, (5 * (math.exp(0.2) - 1)) ** 5,
            {"control": (lambda x: x, [0.5] * 5)},
        ),
        "E abs(T)^1.5, Student's t, 4 degrees of freedom": (
            lambda x: x.abs() ** 1.5, dist.StudentT(4.0), heavy,
            {"proposal": dist.StudentT(2.0, 0.0, 1.5)},
        ),
        "P(Z > 4), normal": (
            lambda x: (x > 4).double(), dist.Normal(0.0, 1.0), 0.5 * math.erfc(4 / math.sqrt(2)),
            {"proposal": dist.Normal(4.0, 1.0)},
        ),
    }  # fmt: skip
    rows = []
    for name, (fn, source, truth, special) in cases.items():
        ways: dict[str, dict[str, Any]] = {"plain": {}, next(iter(special)): special}
        if "proposal" not in special:
            ways |= {"antithetic": {"sampling": "antithetic"}, "sobol": {"sampling": "sobol"}}
        for way, settings in ways.items():
            runs = [
                expectation(fn, source, num_samples=131_072, seed=seed, **settings)
                for seed in range(RUNS)
            ]
            errors = [float((r.value - truth) / r.standard_error) for r in runs]
            rows.append(
                {
                    "integral": name,
                    "way": way,
                    "error_in_se": float(np.sqrt(np.mean(np.square(errors)))),
                    "standard_error": float(np.median([r.standard_error for r in runs])),
                    "variance_reduction": float(np.median([r.variance_reduction for r in runs])),
                }
            )
    return rows


def write(results: dict[str, Any]) -> None:
    """Write the results as tables."""
    one, sbc, other = results["fits"], results["calibration"], results.get("peer")
    lines = [
        f"Measured by `make bench-studies` on {os.cpu_count()} cores with torch "
        f"{torch.__version__}.",
        "",
        "| quantity | measured |",
        "| --- | --- |",
        "| 1,000 maximum-likelihood fits of a normal model, including compilation | "
        f"{one['seconds_1000']:.1f} s |",
        f"| calibration of NUTS on eight schools, {sbc['simulations']} simulations with 1000 "
        "warm-up iterations and 1000 draws "
        f"| {sbc['seconds']:.0f} s |",
    ]
    for sampler, found in (other or {}).items():
        if found is None:
            continue
        whole = found["seconds"] * sbc["simulations"] / PEER_SIMULATIONS
        lines.append(
            f"| the same with PyMC {found['pymc']} ({sampler}) and simuk, extrapolated from "
            f"{PEER_SIMULATIONS} simulations in {found['seconds']:.0f} s | {whole:.0f} s, "
            f"{whole / sbc['seconds']:.0f} times probdl's |"
        )
    lines += [
        f"| slope of the log variance of the mean in log n | {one['rate']:.3f} ± "
        f"{one['rate_se']:.3f} |",
        f"| eight schools: smallest p-value of {10} chi-square tests; number of curves outside "
        "their 95 % band "
        f"| {sbc['least_p']:.3f}; {sbc['outside_band']} |",
        "",
        "Bias of the maximum-likelihood estimate of the variance, from 1,000 data sets per sample "
        "size, and its theoretical value (-σ²/n, σ² = 4):",
        "",
        "| n | bias | standard error | theory |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {r['n']} | {r['bias']:.4f} | {r['se']:.4f} | {r['theory']:.4f} |" for r in one["bias"]
    ]
    lines += [
        "",
        "![study](study_normal.png)",
        "",
        "![calibration](calibration_schools.png)",
        "",
        f"Known integrals with 131,072 evaluations and {RUNS} runs each: the error in standard "
        "errors (root mean square; 1 if the standard errors are correct), the standard error, and "
        "the variance reduction relative to the same number of plain draws (medians):",
        "",
        "| integral | technique | error / standard error | standard error | variance reduction |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {r['integral']} | {r['way']} | {r['error_in_se']:.2f} | {r['standard_error']:.2g} | "
        f"{r['variance_reduction']:.3g} |"
        for r in results["reductions"]
    ]
    (RESULTS / "studies.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    parts = {"fits": fits, "calibration": calibration, "peer": peer, "reductions": reductions}
    run("studies", parts, write)
