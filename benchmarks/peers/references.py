"""Long runs of Stan for the tasks that have no reference posterior: `make bench-references`.

Run ``python -m benchmarks.peers.references DATA_FOLDER`` in the peers' environment; DATA_FOLDER
contains TASK.npz, the data that every system receives. Writes references/TASK.json, which is
committed; existing files are not replaced.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import arviz as az
import numpy as np
import stan

from benchmarks.peers.systems.stan import by_site
from benchmarks.peers.tasks import TASKS, load

DRAWS, WARMUP, CHAINS, SEED = 2_500, 1_000, 4, 20_261_125
FOLDER = Path(__file__).parent / "references"


def make(name: str, file: Path) -> None:
    task = load(name)
    with np.load(file) as held:
        data = dict(held)
    posterior = stan.build(task.STAN, data=task.stan(data), random_seed=SEED)
    fit = posterior.sample(num_chains=CHAINS, num_samples=DRAWS, num_warmup=WARMUP)
    draws = task.parameters(by_site(fit))
    rhat = max(float(az.rhat(d)) for d in draws.values())
    if not rhat < 1.01:
        raise SystemExit(f"{name}: R-hat is {rhat:.3f}, too large for a reference (1.01).")
    content = {
        "made_by": f"Stan, {CHAINS} chains of {DRAWS} draws after {WARMUP}, seed {SEED}",
        "max_rhat": rhat,
        "reference": {k: _statistics(v) for k, v in draws.items()},
    }
    (FOLDER / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


def _statistics(draws: np.ndarray) -> dict[str, float]:
    """Return the mean, the standard deviation and the effective sample size of the mean."""
    worth = float(az.ess(draws, method="mean"))
    return {"mean": float(draws.mean()), "sd": float(draws.std()), "n": round(worth)}


if __name__ == "__main__":
    for one in TASKS:
        if load(one).REFERENCE is None and not (FOLDER / f"{one}.json").exists():
            make(one, Path(sys.argv[1]) / f"{one}.npz")
