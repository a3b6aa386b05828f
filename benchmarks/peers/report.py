"""The results as a table for each task, a summary with the bars, and a plot."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from statistics import median
from typing import Any

import matplotlib.pyplot as plt

from benchmarks.parts import RESULTS
from benchmarks.peers.systems import CHAINS, CORES, DRAWS, SYSTEMS, WARMUP
from benchmarks.peers.tasks import TASKS

Rows = dict[str, dict[str, Any]]  # of one task, by system

LABELS = {
    "probdl": "probdl",
    "pyro": "Pyro (estimate)",
    "numpyro_vectorized": "NumPyro, vectorized",
    "numpyro_parallel": "NumPyro, parallel",
    "pymc": "PyMC, nutpie",
    "pymc_low_rank": "PyMC, nutpie low-rank",
    "stan": "PyStan",
}
# Okabe and Ito's colours, which the colour-blind can tell apart; the markers differ as well.
MARKERS = {
    "probdl": ("#000000", "|"),
    "pyro": ("#999999", "v"),
    "numpyro_vectorized": ("#0072B2", "o"),
    "numpyro_parallel": ("#56B4E9", "s"),
    "pymc": ("#D55E00", "D"),
    "pymc_low_rank": ("#CC79A7", "P"),
    "stan": ("#009E73", "^"),
}
NOTES = f"""\
All systems: {CHAINS} chains of {DRAWS:,} draws after {WARMUP:,} of warm-up, default settings \
otherwise, {CORES} cores, a fresh process each with an empty cache. One system has a setting of \
its own: *nutpie low-rank* has a mass matrix of the kind that probdl takes by default where there \
are at most 50 coordinates ([what that does](mass_matrix.md)). *First call*: from the call to the \
posterior, after imports, compilation included. *Cached*: the same in a second process that finds \
what the first left on disk, for probdl only. *Sampling*: later calls with other seeds (the \
median), warm-up included; for probdl all but compiling and the diagnosis of the draws, which the \
peers do not make, and which *first call* and *cached* contain. *ESS*: ArviZ's bulk effective \
sample size, of the parameter where it is least. *Gradients*: of the draws after warm-up, all \
chains. *Peak*: memory of the largest process, the C++ compiler's for PyStan.

*Right*: R-hat at most 1.05 everywhere, each mean within 4 standard errors of the reference (more \
where there are many parameters, so that chance calls a right run wrong less than once in a \
thousand), each standard deviation within 10 % of it, or within as many of its own standard \
errors. The worst mean is given in standard errors. A system with a wrong run counts as no best \
peer.

*Pyro* takes milliseconds a gradient, so a gradient is timed within NUTS, and the rest computed: \
Pyro's ESS per second is NumPyro's ESS per gradient (it is the same algorithm) × {CORES} cores / \
seconds a gradient. That leaves warm-up out, in Pyro's favour. Where `jit_compile=True` was not \
done compiling after two minutes, the gradient is one without it."""


def per_second(system: str, rows: Rows) -> float | None:
    """Return effective draws a second without compilation; for Pyro an estimate."""
    row = rows.get(system, {})
    if system == "pyro":
        twin = next((t for t in ("numpyro_vectorized", "numpyro_parallel") if _ran(t, rows)), None)
        if "gradient_s" not in row or twin is None:
            return None
        runs = zip(rows[twin]["runs"], rows[twin]["gradients"], strict=True)
        return median(r["min_ess"] / g for r, g in runs) * CORES / row["gradient_s"]
    if not _ran(system, rows):
        return None
    runs = zip(row["runs"][1:], row["sampling_s"], strict=True)
    return median(r["min_ess"] / s for r, s in runs)


def _ran(system: str, rows: Rows) -> bool:
    return bool(rows.get(system, {}).get("sampling_s"))


def _right(system: str, rows: Rows) -> bool:
    return _ran(system, rows) and all(r["right"] for r in rows[system]["runs"])


def _answer(rows: Rows) -> str:
    if not _ran("probdl", rows):
        return "failed"
    return "right" if _right("probdl", rows) else "WRONG"


def _peers(rows: Rows) -> list[str]:
    """Return the peers, at their default settings, that ran, and were right."""
    others = ("probdl", "pyro", "pymc_low_rank")
    return [s for s in SYSTEMS if s not in others and _right(s, rows)]


def against_best(rows: Rows, *more: str) -> tuple[float, str] | None:
    """Return our ESS per second over the best peer's, and which that is."""
    ours = per_second("probdl", rows)
    more = tuple(s for s in more if _right(s, rows))
    others = {s: per_second(s, rows) for s in [*_peers(rows), "pyro", *more]}
    known = {s: v for s, v in others.items() if v is not None}
    if ours is None or not known:
        return None
    best = max(known, key=known.__getitem__)
    return ours / known[best], best


def against_pyro(rows: Rows) -> float | None:
    ours, pyro = per_second("probdl", rows), per_second("pyro", rows)
    return None if ours is None or pyro is None else ours / pyro


def first_call(rows: Rows, ours: str = "first_s") -> float | None:
    """Return the time of our first call, or the cached one, over the fastest peer's first."""
    peers = _peers(rows)
    if not _ran("probdl", rows) or not peers:
        return None
    return rows["probdl"][ours] / min(rows[p]["first_s"] for p in peers)


def _mean(ratios: Iterable[float | None]) -> float:
    """Return the geometric mean of those that are known."""
    logs = [math.log(r) for r in ratios if r is not None]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _verdict(runs: list[dict[str, Any]]) -> str:
    wrong = sum(not r["right"] for r in runs)
    worst = max(runs, key=lambda r: r["worst_z"])
    text = f"WRONG, {wrong} of {len(runs)}" if wrong else "right"
    text += f" ({worst['worst_z']:.1f} of {worst['limit']:.1f}"
    if wrong:
        text += f", {worst['worst_parameter']}; R-hat {max(r['max_rhat'] for r in runs):.2f}"
        text += f"; sd off {max(r['worst_sd'] for r in runs):.0%}"
    return text + ")"


def _line(system: str, rows: Rows) -> str:
    row = rows.get(system, {"error": "not run"})
    if "error" in row:
        return f"| {LABELS[system]} | {row['error'].replace('|', '/')} | | | | | | | | | |"
    speed = _number(per_second(system, rows))
    if system == "pyro":
        cost = (
            f"{row['gradient_s'] * 1e3:.3g} ms a gradient{'' if row['jit'] else ', not compiled'}"
        )
        cells = [_number(row["compile_s"]), cost, "", speed, "", "", ""]
        cells += [_number(row["gradients"]), _number(row["peak_mib"]), ""]
    else:
        runs, first = row["runs"], row["first_s"]
        cells = [
            _number(row["compile_s"]),
            _number(median(row["sampling_s"])),
            _number(median(r["min_ess"] for r in runs)),
            speed,
            _number(runs[0]["min_ess"] / first),
            _number(first),
            _number(row.get("cached_first_s")),
            _number(median(row["gradients"])),
            _number(row["peak_mib"]),
            _verdict(runs),
        ]
    return f"| {LABELS[system]} | " + " | ".join(cells) + " |"


def _summary(results: dict[str, Rows]) -> list[str]:
    done = {task: results[task] for task in TASKS if task in results}
    best = {task: against_best(rows) for task, rows in done.items()}
    ratios = {task: found[0] for task, found in best.items() if found}
    set_up = [against_best(rows, "pymc_low_rank") for rows in done.values()]
    strict = [found[0] for found in set_up if found]
    lines = [
        "| what, geometric mean | bar | measured |",
        "| --- | --- | --- |",
        f"| ESS per second without compilation, ours / best peer, {len(ratios)} tasks | at least "
        f"1.0 | {_mean(ratios.values()):.2f} |",
        f"| the same, worst task | at least 0.5 | {min(ratios.values(), default=math.nan):.2f} |",
        "| ESS per second without compilation, ours / best peer, nutpie low-rank among them "
        f"(worst task) | | {_mean(strict):.2f} ({min(strict, default=math.nan):.2f}) |",
        "| ESS per second without compilation, ours / Pyro | at least 100 | "
        f"{_mean(map(against_pyro, done.values())):.0f} |",
        "| first call, ours / fastest peer | at most 1.0 | "
        f"{_mean(map(first_call, done.values())):.2f} |",
        "| first call, ours cached / fastest peer without a cache | at most 0.2 | "
        f"{_mean(first_call(rows, 'cached_first_s') for rows in done.values()):.2f} |",
        "",
        "| task | ESS/s, ours / best peer | best peer | ours / Pyro | first call, ours / fastest "
        "| cached, ours / fastest | ours |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for task, rows in done.items():
        found = best[task]
        cells = [
            task,
            _number(found[0]) if found else "",
            LABELS[found[1]] if found else "",
            _number(against_pyro(rows)),
            _number(first_call(rows)),
            _number(first_call(rows, "cached_first_s")),
            _answer(rows),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _plot(results: dict[str, Rows]) -> None:
    """Draw each system's ESS per second over ours, a line for each task; wrong ones hollow."""
    done = [task for task in reversed(TASKS) if task in results]
    height = 2.0 + 0.5 * len(done)
    figure, axes = plt.subplots(figsize=(8, height))
    for system in SYSTEMS:
        colour, marker = MARKERS[system]
        label: str | None = LABELS[system]
        for place, task in enumerate(done):
            rows = results[task]
            ours, theirs = per_second("probdl", rows), per_second(system, rows)
            if ours is None or theirs is None:
                continue
            full = system == "pyro" or _right(system, rows)
            axes.plot(theirs / ours, place, marker, color=colour, label=label, markersize=9,
                      markerfacecolor=colour if full else "none", linestyle="none")  # fmt: skip
            label = None  # once in the legend
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(range(len(done)), done)
    axes.set_ylim(-0.5, len(done) - 0.5)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("effective draws a second, without compilation, over probdl's (hollow: wrong)")
    figure.legend(loc="upper center", ncols=3, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.6 / height))
    figure.savefig(RESULTS / "peers.png", dpi=100)
    plt.close(figure)


def _versions(results: dict[str, Rows]) -> str:
    known: dict[str, str] = {}
    for rows in results.values():
        for row in rows.values():
            known |= row.get("versions", {})
    return ", ".join(f"{name} {version}" for name, version in sorted(known.items()))


def write(results: dict[str, Rows]) -> None:
    """Write results/peers.md and results/peers.png."""
    lines = [
        f"Measured by `make bench` on {os.cpu_count()} cores with {_versions(results)}.",
        "",
        *_summary(results),
        "",
        "![effective draws a second, over probdl's](peers.png)",
        "",
        NOTES,
    ]
    for task in (t for t in TASKS if t in results):
        lines += [
            "",
            f"## {task}",
            "",
            "| system | compile, s | sampling, s | least ESS | ESS/s | ESS/s with compile | "
            "first call, s | cached, s | gradients | peak, MiB | answer, worst mean |",
            "| --- " * 11 + "|",
            *(_line(system, results[task]) for system in SYSTEMS),
        ]
    (RESULTS / "peers.md").write_text("\n".join(lines) + "\n")
    _plot(results)
