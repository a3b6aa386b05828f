"""Gradient times of a logistic regression by size of the data, compared with a hardware bound.

``python -m benchmarks.peers.scaling`` writes results/scaling.json, scaling.md and scaling.png.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.parts import RESULTS, run
from benchmarks.peers.gradients import SYSTEMS
from benchmarks.peers.report import LABELS, MARKERS
from benchmarks.peers.systems import ROOT, interpreter

ROWS = [10**3, 10**4, 10**5, 10**6]
PREDICTORS = [10, 30, 100, 300, 1000]
FIXED = 20, 10_000  # number of predictors when rows vary, number of rows when predictors vary
TIMEOUT_S = 300
NAMES = LABELS | {"numpyro": "NumPyro (JAX)", "pymc": "PyMC (numba)", "probdl": "probdl"}
STYLES = MARKERS | {"numpyro": MARKERS["numpyro_vectorized"]}


def gradient(system: str, rows: int, predictors: int, threads: int | None = None) -> Any:
    """Time a gradient in a separate process; return the seconds, or an error as text."""
    more = {} if threads is None else {"PROBDL_BENCH_THREADS": str(threads)}
    sizes = str(rows), str(predictors)
    with tempfile.TemporaryDirectory() as cache:  # httpstan would return cached fits
        more["XDG_CACHE_HOME"] = cache
        try:
            done = subprocess.run(
                [interpreter(system), "-m", "benchmarks.peers.gradients", system, *sizes],
                cwd=ROOT,
                env=os.environ | more,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=True,
            )
        except FileNotFoundError:
            return "not installed"
        except subprocess.TimeoutExpired:
            return f"not done after {TIMEOUT_S} s"
        except subprocess.CalledProcessError as error:
            return (error.stderr.strip().splitlines() or ["failed"])[-1][:200]
    return json.loads(done.stdout.splitlines()[-1])["seconds"]


def sweep(sizes: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """Time a gradient with every system at every size, one system after the other."""
    found = []
    for rows, predictors in sizes:
        times = {s: gradient(s, rows, predictors) for s in SYSTEMS}
        times["probdl_one_thread"] = gradient("probdl", rows, predictors, threads=1)
        found.append({"rows": rows, "predictors": predictors, "seconds": times})
        print(found[-1], flush=True)
    return found


def machine() -> dict[str, Any]:
    """Measure memory bandwidth with a dot product and peak flops with a matrix product."""
    a, b = np.ones(2**26), np.ones(2**26)  # 1 GiB in total, more than any cache
    square = np.random.default_rng(0).normal(size=(1500, 1500))
    limits = {}
    for threads in (1, os.cpu_count() or 1):
        with threadpool_limits(threads):
            limits[str(threads)] = {
                "bytes_per_s": 2 * a.nbytes / _best(lambda: a @ b),
                "flops_per_s": 2 * 1500**3 / _best(lambda: square @ square),
            }
    return limits


def _best(call: Callable[[], Any], rounds: int = 9) -> float:
    call()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def cost(rows: int, predictors: int) -> tuple[float, float]:
    """Return the minimum number of bytes and flops of a gradient.

    Each row is read once: its predictors and its class, in double precision. Each element of X
    takes two multiplications and two additions, for the linear predictor and the gradient; the
    exponential, the logarithm and related operations take about 60 operations per row.
    """
    return 8.0 * rows * (predictors + 1), rows * (4.0 * predictors + 60)


def bound(limits: dict[str, Any], rows: int, predictors: int) -> float:
    """Return the roofline bound: the minimum seconds of a gradient on all cores."""
    best = limits[max(limits, key=int)]
    moved, computed = cost(rows, predictors)
    return max(moved / best["bytes_per_s"], computed / best["flops_per_s"])


def write(results: dict[str, Any]) -> None:
    """Write results/scaling.md and results/scaling.png."""
    limits = results["machine"]
    lines = [
        "# Gradient of the logistic regression, compared with the hardware limit",
        "",
        f"Measured by `make bench-scaling`. The data have n rows and p predictors: p = {FIXED[0]} "
        f"when n varies, n = {FIXED[1]:,} when p varies. Times are for value and gradient in "
        "double precision on all cores, the minimum over several rounds, without Python overhead: "
        "the compiled functions of probdl and nutpie are called by address, and JAX's in a "
        "compiled loop if that is faster. Stan's time is the sampling time that it reports, "
        "divided by the number of gradients, on the single core that a chain uses; it includes "
        "the sampler's own work.",
        "",
        "## Theoretical cost",
        "",
        "With X of n rows and p columns in memory, a gradient must read 8 n (p + 1) bytes and "
        "needs about n (4 p + 60) operations: X β, then Xᵀ (σ(X β) − y), and an exponential and "
        "a logarithm per row. For large p, that is half an operation per byte. So if X does not "
        "fit into the cache, the limit is the time to read it once, and a system that computes "
        "X β for all rows and then reads X again takes at least twice as long. probdl generates "
        "one loop for both products and the operations between them, over blocks of rows that "
        "stay in the cache; the blocks are distributed over the threads.",
        "",
        "| threads | memory bandwidth, GB/s | matrix product, Gflop/s |",
        "| ---: | ---: | ---: |",
        *(
            f"| {k} | {v['bytes_per_s'] / 1e9:.1f} | {v['flops_per_s'] / 1e9:.0f} |"
            for k, v in limits.items()
        ),
        "",
        "*Limit*: the larger of bytes / bandwidth and operations / peak performance, on all cores. "
        "A system can be faster than this limit if X fits into a cache, which is faster than "
        "memory.",
        "",
    ]
    columns = [*SYSTEMS, "probdl_one_thread"]
    heads = [*(NAMES[s] for s in SYSTEMS), "probdl, one thread"]
    for part in ("rows", "predictors"):
        lines += [
            f"## Varying the number of {part}",
            "",
            f"| n | p | limit, µs | {' | '.join(f'{h}, µs' for h in heads)} "
            "| probdl / best peer | limit / probdl |",
            "| ---: " * (5 + len(heads)) + "|",
        ]
        for row in results[part]:
            times = row["seconds"]
            peers = [times[s] for s in SYSTEMS[1:] if isinstance(times[s], float)]
            least = bound(limits, row["rows"], row["predictors"])
            ours = times["probdl"]
            cells = [
                f"{times[c] * 1e6:,.1f}" if isinstance(times[c], float) else times[c]
                for c in columns
            ]
            lines.append(
                f"| {row['rows']:,} | {row['predictors']} | {least * 1e6:,.1f} "
                f"| {' | '.join(cells)} | {ours / min(peers):.2f} | {least / ours:.2f} |"
            )
        lines.append("")
    lines += ["![Gradient times by number of rows and predictors](scaling.png)", ""]
    (RESULTS / "scaling.md").write_text("\n".join(lines))
    _plot(results)


def _plot(results: dict[str, Any]) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    for axis, part in zip(axes, ("rows", "predictors"), strict=True):
        sizes = [row[part] for row in results[part]]
        for system in SYSTEMS:
            points = [
                (size, row["seconds"][system] / (row["rows"] * row["predictors"]) * 1e9)
                for size, row in zip(sizes, results[part], strict=True)
                if isinstance(row["seconds"][system], float)
            ]
            colour, marker = STYLES[system]
            marker = "o" if marker == "|" else marker
            axis.plot(*zip(*points, strict=True), marker, ls="-", color=colour, label=NAMES[system])
        least = [
            bound(results["machine"], row["rows"], row["predictors"])
            / (row["rows"] * row["predictors"])
            * 1e9
            for row in results[part]
        ]
        axis.plot(sizes, least, "k--", lw=1, label="limit: memory bandwidth or peak flops")
        axis.set(xscale="log", yscale="log", xlabel=f"{part} (others fixed)")
    axes[0].set_xlabel(f"rows n, at {FIXED[0]} predictors")
    axes[1].set_xlabel(f"predictors p, at {FIXED[1]:,} rows")
    axes[0].set_ylabel("ns per gradient and element of X")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=5, frameon=False)
    figure.savefig(RESULTS / "scaling.png", dpi=130)


if __name__ == "__main__":
    run(
        "scaling",
        {
            "machine": machine,
            "rows": functools.partial(sweep, [(n, FIXED[0]) for n in ROWS]),
            "predictors": functools.partial(sweep, [(FIXED[1], p) for p in PREDICTORS]),
        },
        write,
    )
