"""Fits on forks and on a Dask cluster, and training by two processes: `make bench-scale`.

All have two processes on this machine. Writes results/scale.json and scale.md. Run it on an
otherwise idle machine.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch

import probdl
from benchmarks.parts import RESULTS, run
from probdl.montecarlo import study

ROWS_OF_IMAGES, STEPS = 6000, (100, 400)
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


def trained(steps: int) -> float:
    """Train an autoencoder, and return the seconds of the steps."""
    torch.manual_seed(0)
    x = (torch.rand(ROWS_OF_IMAGES, 784) > 0.8).float()
    vae = probdl.models.VAE.mlp((784,), latent_dim=50, hidden=1000)
    method = probdl.SVI(steps=steps, batch_size=512, schedule="constant")
    return probdl.infer(vae, x, method=method, seed=1).timings["training"]


def ranks() -> dict[str, float]:
    """Return the milliseconds of a step by one process and by two, whose start is left out."""

    def step(count: int) -> float:
        took = []
        for steps in STEPS:
            command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
            done = subprocess.run(
                [sys.executable, *command, "-m", "benchmarks.scale", "train", str(steps)],
                env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
                check=True,
            )  # fmt: skip
            took.append(float(done.stdout.split()[-1]))
        return 1e3 * (took[1] - took[0]) / (STEPS[1] - STEPS[0])

    times = [(step(1), step(2)) for _ in range(ROUNDS)]
    return {
        "one": statistics.median(a for a, _ in times),
        "two": statistics.median(b for _, b in times),
        "ratio": statistics.median(b / a for a, b in times),
    }


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
    if (of := results.get("ranks")) is not None:
        lines += [
            "",
            "A variational autoencoder (784-1000-50, minibatches of 512 rows together) takes "
            f"{of['one']:.1f} ms a step by one process on one thread, and {of['two']:.1f} ms by "
            f"two under `torchrun`; the ratio is {of['ratio']:.2f}.",
        ]
    (RESULTS / "scale.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        seconds_of_steps = trained(int(sys.argv[2]))
        if os.environ["RANK"] == "0":
            print(seconds_of_steps)
    else:
        run("scale", {"fits": fits, "memory": memory, "ranks": ranks}, write)
