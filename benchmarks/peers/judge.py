"""Judge draws: their effective sample size, and whether they agree with a reference.

A run is right if, for every parameter, R-hat is at most 1.05, the mean is within 4 standard errors
of the reference mean, and the standard deviation is within 10 % of the reference value or, if that
is larger, within 4 standard errors of the standard deviation. With hundreds of parameters the limit
of 4 is higher, so that a correct run is judged wrong with a probability below 1/1000.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import arviz as az
import numpy as np
from scipy import stats

from benchmarks.peers import posteriordb
from benchmarks.peers.tasks import load

REFERENCES = Path(__file__).parent / "references"
FALSE_ALARM = 1e-3
MAX_RHAT = 1.05


def reference(task: str) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Return the reference statistics by parameter, and the effective number of draws of each."""
    name = load(task).REFERENCE
    if name is None:
        known = json.loads((REFERENCES / f"{task}.json").read_text())["reference"]
        return known, {k: v["n"] for k, v in known.items()}
    _, known, count = posteriordb.content(name)
    return known, dict.fromkeys(known, count)


def limit(count: int) -> float:
    """Return the maximum error of a mean in standard errors, for a number of parameters."""
    return max(4.0, float(stats.norm.isf(FALSE_ALARM / 2 / count)))


def judge(task: str, draws: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Compare draws by parameter, each of shape (chain, draw), with the reference."""
    known, worth = reference(task)
    if set(known) != set(draws):
        raise ValueError(f"{task} has the parameters {sorted(draws)}, not {sorted(known)}")
    allowed = limit(len(known))
    ess, rhat, z, off, right = [], [], {}, {}, True
    for name, facts in known.items():
        found = draws[name]
        ess.append(float(az.ess(found, method="bulk")))
        rhat.append(float(az.rhat(found)))
        error = np.hypot(float(az.mcse(found, method="mean")), facts["sd"] / worth[name] ** 0.5)
        z[name] = float(abs(found.mean() - facts["mean"]) / error)
        off[name] = abs(float(found.std()) / facts["sd"] - 1)
        spread = max(0.1, allowed * float(az.mcse(found, method="sd")) / facts["sd"])
        # With these comparisons, a NaN makes the run wrong.
        right &= bool(z[name] <= allowed and off[name] <= spread and rhat[-1] <= MAX_RHAT)
    return {
        "min_ess": float(min(ess)),
        "max_rhat": float(max(rhat)),
        "worst_z": max(z.values()),
        "worst_parameter": max(z, key=z.__getitem__),
        "worst_sd": max(off.values()),
        "limit": allowed,
        "right": right,
    }
