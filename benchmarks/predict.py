"""Memory use of a large prediction, 100,000 draws and 10,000 rows: `make bench-predict`."""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path

import numpy as np

import probdl
from probdl.models import linear_regression

DRAWS, ROWS = 100_000, 10_000
RESULTS = Path(__file__).parent / "results" / "predict.md"


def peak() -> float:
    """Return the peak memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    rng = np.random.default_rng(0)
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
"""
    RESULTS.write_text(table)
    print(table)


if __name__ == "__main__":
    main()
