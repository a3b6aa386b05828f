"""Report the results as one table per task, a summary and a plot."""

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

Rows = dict[str, dict[str, Any]]  # results of one task by system
SET_UP = ("numpyro_dense", "pymc_low_rank")  # peers with settings that are not their defaults

LABELS = {
    "probdl": "probdl",
    "pyro": "Pyro (estimate)",
    "numpyro_vectorized": "NumPyro, vectorized",
    "numpyro_parallel": "NumPyro, parallel",
    "numpyro_dense": "NumPyro, parallel, dense",
    "pymc": "PyMC, nutpie",
    "pymc_low_rank": "PyMC, nutpie low-rank",
    "stan": "PyStan",
}
# Okabe and Ito's colours, distinguishable with colour blindness; the markers differ as well.
MARKERS = {
    "probdl": ("#000000", "|"),
    "pyro": ("#999999", "v"),
    "numpyro_vectorized": ("#0072B2", "o"),
    "numpyro_parallel": ("#56B4E9", "s"),
    "numpyro_dense": ("#F0E442", "X"),
    "pymc": ("#D55E00", "D"),
    "pymc_low_rank": ("#CC79A7", "P"),
    "stan": ("#009E73", "^"),
}
NOTES = f"""\
Every system runs {CHAINS} chains with {WARMUP:,} warm-up iterations and {DRAWS:,} draws each on \
{CORES} cores, in a new process with an empty cache, at its default settings, with these \
exceptions. NumPyro uses double precision, as all systems except Pyro do. *nutpie low-rank* and \
*NumPyro, dense* use a mass matrix with correlations, as probdl does where the first draws show \
strong ones ([the effect of this setting](mass_matrix.md)); they count in one row of the summary \
only. PyMC models are always sampled by nutpie. probdl's default (low-rank from a ratio of 4 on) \
was chosen after its effect on these tasks was known, so the rows at default settings favour \
probdl. The row that includes the peers with correlations is the like-for-like comparison.

*First call*: time from the call to the posterior, without imports, including compilation. \
*Cached*: the same in a second process that uses the files cached by the first, measured for \
probdl only (PyMC and PyStan also cache compiled code; NumPyro does not). *Sampling*: median of \
later calls with other seeds, including warm-up; for probdl without loading and verifying the \
compiled code and without the diagnosis of the draws, which the peers do not perform. *Later \
call* includes all of these. PyStan's times include its work around Stan (one HTTP request per \
chain, writing and parsing the draws), as its users experience them.

*Minimum ESS*: ArviZ's bulk effective sample size of the parameter for which it is smallest. \
*Gradients*: number of gradient evaluations after warm-up, over all chains. *Peak*: peak memory of \
the largest process; for PyStan, that is the C++ compiler.

*Right*: every R-hat is at most 1.05, every mean is within 4 standard errors of the reference \
(more for many parameters, so that a correct run is judged wrong with a probability below one in \
a thousand), and every standard deviation is within 10 % of the reference or within the same \
number of standard errors of the standard deviation. The worst mean is given in standard errors. \
A system with a wrong run cannot be the best peer, and a task on which probdl has a wrong run is \
excluded from the means of the summary.

*Pyro* needs about half a millisecond or more per gradient. Therefore the gradient is timed \
within NUTS, in single precision, which is Pyro's default, and the rest is computed: Pyro's ESS \
per second is NumPyro's ESS per gradient (it is the same algorithm) × {CORES} cores / seconds \
per gradient. This excludes warm-up, in Pyro's favour. If `jit_compile=True` did not finish \
within two minutes, the gradient is timed without it."""


def per_second(system: str, rows: Rows) -> float | None:
    """Return the ESS per second without compilation; for Pyro, an estimate."""
    row = rows.get(system, {})
    if system == "pyro":
        twin = next(
            (t for t in ("numpyro_vectorized", "numpyro_parallel") if _right(t, rows)), None
        )
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
    """Return the peers at default settings that ran and were right."""
    return [s for s in SYSTEMS if s not in ("probdl", "pyro", *SET_UP) and _right(s, rows)]


def against_best(rows: Rows, *more: str) -> tuple[float, str] | None:
    """Return probdl's ESS per second over the best peer's, and the name of that peer."""
    candidates = [*_peers(rows), "pyro", *(s for s in more if _right(s, rows))]
    known = {s: v for s in candidates if (v := per_second(s, rows)) is not None}
    if not _right("probdl", rows) or not known:
        return None
    best = max(known, key=known.__getitem__)
    return per_second("probdl", rows) / known[best], best  # type: ignore[operator]


def against_pyro(rows: Rows) -> float | None:
    ours, pyro = per_second("probdl", rows), per_second("pyro", rows)
    return None if not _right("probdl", rows) or pyro is None else ours / pyro


def first_call(rows: Rows, ours: str = "first_s") -> float | None:
    """Return the time of probdl's first (or cached) call over the fastest peer's first call."""
    peers = _peers(rows)
    if not _right("probdl", rows) or not peers:
        return None
    return rows["probdl"][ours] / min(rows[p]["first_s"] for p in peers)


def later_call(rows: Rows) -> float | None:
    """Return the time of probdl's later calls, with all checks, over the fastest peer's."""
    times = {s: median(rows[s]["later_s"]) for s in ["probdl", *_peers(rows)]}
    if not _right("probdl", rows) or len(times) < 2:
        return None
    return times.pop("probdl") / min(times.values())


def _mean(ratios: Iterable[float | None], digits: int = 2) -> str:
    """Format the geometric mean of the known ratios and their number."""
    logs = [math.log(r) for r in ratios if r is not None]
    return f"{math.exp(sum(logs) / len(logs)):.{digits}f} ({len(logs)})" if logs else "none"


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
        return f"| {LABELS[system]} | {row['error'].replace('|', '/')} | | | | | | | | | | |"
    speed = _number(per_second(system, rows))
    if system == "pyro":
        cost = (
            f"{row['gradient_s'] * 1e3:.3g} ms per gradient{'' if row['jit'] else ', not compiled'}"
        )
        cells = [_number(row["compile_s"]), cost, "", "", speed, "", "", ""]
        cells += [_number(row["gradients"]), _number(row["peak_mib"]), ""]
    else:
        runs, first = row["runs"], row["first_s"]
        cells = [
            _number(row["compile_s"]),
            _number(median(row["sampling_s"])),
            _number(median(row["later_s"])),
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
    all_rows = done.values()
    best = {task: against_best(rows) for task, rows in done.items()}
    ratios = [found[0] for found in best.values() if found]
    strict = [found[0] for rows in all_rows if (found := against_best(rows, *SET_UP))]
    lines = [
        "| quantity, geometric mean (number of tasks) | measured |",
        "| --- | --- |",
        f"| ESS per second, probdl / best peer | {_mean(ratios)} |",
        f"| the same, worst task | {min(ratios, default=math.nan):.2f} |",
        "| ESS per second, probdl / best peer, including peers with correlations in their mass "
        f"matrix (worst task) | {_mean(strict)} ({min(strict, default=math.nan):.2f}) |",
        f"| ESS per second, probdl / Pyro | {_mean(map(against_pyro, all_rows), 0)} |",
        f"| time of the first call, probdl / fastest peer | {_mean(map(first_call, all_rows))} |",
        "| time of the first call, probdl with a cache / fastest peer without | "
        f"{_mean(first_call(rows, 'cached_first_s') for rows in all_rows)} |",
        f"| time of later calls, probdl / fastest peer | {_mean(map(later_call, all_rows))} |",
        f"| tasks on which all runs of probdl are right | "
        f"{sum(_right('probdl', rows) for rows in all_rows)} of {len(done)} |",
        "",
        "ESS per second excludes compilation.",
        "",
        "| task | ESS/s, probdl / best peer | best peer | ESS/s, probdl / Pyro | first call, "
        "probdl / fastest peer | cached, probdl / fastest peer | probdl's answer | peers with a "
        "wrong or no answer |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
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
            ", ".join(
                LABELS[s] for s in rows if s not in ("probdl", "pyro") and not _right(s, rows)
            ),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _plot(results: dict[str, Rows]) -> None:
    """Plot each system's ESS per second relative to probdl's, one line per task."""
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
            label = None  # one legend entry per system
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(range(len(done)), done)
    axes.set_ylim(-0.5, len(done) - 0.5)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("ESS per second, without compilation, relative to probdl (hollow: wrong)")
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
        "![ESS per second, relative to probdl](peers.png)",
        "",
        NOTES,
    ]
    for task in (t for t in TASKS if t in results):
        lines += [
            "",
            f"## {task}",
            "",
            "| system | compilation, s | sampling, s | later call, s | minimum ESS | ESS/s | "
            "ESS/s with compilation | first call, s | cached, s | gradients | peak, MiB | "
            "answer (error of the worst mean, of the limit) |",
            "| --- " * 12 + "|",
            *(_line(system, results[task]) for system in SYSTEMS),
        ]
    (RESULTS / "peers.md").write_text("\n".join(lines) + "\n")
    _plot(results)
