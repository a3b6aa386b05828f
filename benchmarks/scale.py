"""Independent fits on forks and on a Dask cluster: `make bench-scale`.

Both have two processes on this machine. Writes results/scale.json and scale.md. Run it on an
otherwise idle machine.
"""

from __future__ import annotations

import resource
import statistics
import time
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch

import probdl
from benchmarks.parts import RESULTS, run
from probdl.montecarlo import study

WORKERS, ROUNDS, FITS, MANY_FITS, ROWS = 2, 3, 2000, 100_000, 50


def regression(x: Any, y: Any) -> None:
    b = pyro.sample("b", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(x @ b, 1.0), obs=y)


METHODS: dict[str, Any] = {
    "maximum likelihood": "mle",
    "NUTS, one chain of 300 + 300": probdl.NUTS(chains=1, draws=300, warmup=300),
}


def seconds(method: Any, fits: int, **where: Any) -> float:
    """Return the seconds of a study with so many fits."""
    x = np.random.default_rng(0).normal(size=(ROWS, 3))
    began = time.perf_counter()
    found = study(
        regression, method, {"b": np.array([1.0, -1.0, 0.0])}, sizes=[ROWS], replicates=fits,
        arguments=lambda n: (x, np.zeros(n)), seed=1, progress=False, **where,
    )  # fmt: skip
    assert int(found["failed"].sum()) == 0
    return time.perf_counter() - began


def cluster() -> Any:
    from dask.distributed import LocalCluster

    return LocalCluster(WORKERS, threads_per_worker=1, dashboard_address=None)


def fits() -> dict[str, Any]:
    """Time the same study on forks and on Dask, in turn."""
    from dask.distributed import Client

    results = {}
    with cluster() as local, Client(local) as client:
        for name, method in METHODS.items():
            seconds(method, 50, executor=client)  # workers import the package and load the code
            times = [
                (seconds(method, FITS, workers=WORKERS), seconds(method, FITS, executor=client))
                for _ in range(ROUNDS)
            ]
            began = time.process_time()
            seconds(method, FITS, executor=client)
            serial = (time.process_time() - began) / FITS
            forks, dask = (statistics.median(of) for of in zip(*times, strict=True))
            ratio = statistics.median(b / a for a, b in times)
            overhead = statistics.median(b - a for a, b in times) / FITS * WORKERS
            results[name] = {
                "forks": forks,
                "dask": dask,
                "ratio": ratio,
                "overhead": overhead,
                "serial": serial,
            }
    return results


def memory() -> dict[str, float]:
    """Return the peak memory of the client of many fits, in GB, beyond that of few."""
    from dask.distributed import Client

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6

    with cluster() as local, Client(local) as client:
        seconds("mle", 50, executor=client)
        before = peak()
        taken = seconds("mle", MANY_FITS, executor=client)
    return {"before": before, "peak": peak(), "seconds": taken}


def write(results: dict[str, Any]) -> None:
    lines = [
        "# Fits on a cluster",
        "",
        f"Measured by `make bench-scale`: a study of a linear regression of {ROWS} rows with 3 "
        f"coefficients, {FITS:,} fits, by two forks (`workers=2`) and by a Dask cluster of two "
        f"processes on the same machine (`executor=client`), medians of {ROUNDS} rounds. The "
        "overhead is the difference for one fit on one worker; the client's share is the time of "
        "its processor, which simulates the data, sends them, and collects the results, with "
        "Dask's scheduler in its process.",
        "",
        "| method | forks, s | Dask, s | Dask / forks | overhead, ms a fit | client, ms a fit |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, of in results["fits"].items():
        lines.append(
            f"| {name} | {of['forks']:.2f} | {of['dask']:.2f} | {of['ratio']:.2f} "
            f"| {1e3 * of['overhead']:.2f} | {1e3 * of['serial']:.2f} |"
        )
    of = results["memory"]
    lines += [
        "",
        f"{MANY_FITS:,} fits by maximum likelihood take {of['seconds']:.0f} s. The client's memory "
        f"grows from {of['before']:.2f} to {of['peak']:.2f} GB.",
    ]
    (RESULTS / "scale.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    run("scale", {"fits": fits, "memory": memory}, write)
