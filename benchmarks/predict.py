"""Memory use of large predictions and of log likelihoods: `make bench-predict`.

A prediction of 100,000 draws and 10,000 rows, and the log likelihood of an ordered response, whose
probabilities are written to slices of a tensor, for 4,000 draws and 500 rows.
"""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch

import probdl
from probdl.models import linear_regression

DRAWS, ROWS = 100_000, 10_000
ORDERED_DRAWS, ORDERED_ROWS = 4000, 500
RESULTS = Path(__file__).parent / "results" / "predict.md"


def peak() -> float:
    """Return the peak memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def ordered(x: torch.Tensor, y: torch.Tensor | None = None) -> None:
    """Regress an ordered response of four levels."""
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    gaps = pyro.sample("gaps", dist.Exponential(1.0).expand([3]).to_event(1))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.OrderedLogistic(slope * x, gaps.cumsum(-1) - 2), obs=y)


def measure_ordered(rng: np.random.Generator) -> str:
    """Return the rows of the table for the ordered response."""
    x = rng.normal(size=ORDERED_ROWS)
    y = np.digitize(x + rng.logistic(size=ORDERED_ROWS), [-1, 0, 1])
    method = probdl.NUTS(draws=ORDERED_DRAWS // 4)
    fit, rows = probdl.infer(ordered, x, y, method=method, seed=1), []
    for name, call in (("log likelihood", fit.log_likelihood), ("prediction", fit.predict)):
        before, start = peak(), time.perf_counter()
        call()
        seconds = time.perf_counter() - start
        rows += [
            f"| {name}: added to the peak memory | {peak() - before:,.0f} MiB |",
            f"| {name}: time | {seconds:.1f} s |",
        ]
    return "\n".join(rows)


def main() -> None:
    rng = np.random.default_rng(0)
    ordered_rows = measure_ordered(rng)  # first: the peak of the process only grows
    x = rng.normal(size=(50, 3))
    y = x @ [1.0, 2.0, 3.0] + rng.normal(size=50)
    fit = probdl.infer(linear_regression, x, y, method=probdl.NUTS(draws=DRAWS // 4), seed=1)
    new, before = rng.normal(size=(ROWS, 3)), peak()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        predicted = fit.predict(new, out=folder)["y"]
        seconds, size = time.perf_counter() - start, predicted.nbytes / 2**20
    table = f"""# Predictions in bounded memory

Measured by `make bench-predict`: `fit.predict(x, out=folder)` of a linear regression with
{DRAWS:,} draws and {ROWS:,} rows.

| quantity | measured |
| --- | --- |
| size of the predictions, float64 | {size:,.0f} MiB |
| peak memory of the process before the call | {before:,.0f} MiB |
| peak memory after the call | {peak():,.0f} MiB |
| time | {seconds:.0f} s |

An ordered response (`OrderedLogistic`, which writes to slices of a tensor) with {ORDERED_DRAWS:,}
draws and {ORDERED_ROWS:,} rows:

| quantity | measured |
| --- | --- |
{ordered_rows}
"""
    RESULTS.write_text(table)
    print(table)


if __name__ == "__main__":
    main()
