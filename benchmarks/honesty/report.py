"""Write the results as a page: a table by method, one by model, and every row that is at fault."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.honesty.case import METHODS
from benchmarks.honesty.judge import ALARM, FAILED, RIGHT, SILENT, TOLD, VERDICTS
from benchmarks.honesty.models import CASES

MARKS = {RIGHT: "✓", TOLD: "t", SILENT: "**S**", ALARM: "a", FAILED: "**F**"}

INTRODUCTION = """# Right answers, or a word

Models with known answers (closed forms, quadrature, exact sums, or long reference runs), each
fitted by every method that applies, with default settings. Measured by `make bench-honesty`. Each
fit is

- **right**: every reported mean is within 0.1 posterior standard deviations of the known answer (or
  4 Monte Carlo standard errors), every standard deviation within 15 % (or 4 of its standard
  errors), and the log evidence, if there is one, within 0.5 nats. A point estimate is within 0.1
  standard errors of the known maximum, and its standard error within 15 %;
- **wrong and told**: it is not, and `fit.diagnose()` has a warning or an error that concerns the
  figure, or the call raised a `ProbdlError`. If there is no right answer, as for an improper
  posterior, the fit has to say so;
- **told although right**: a false alarm. Information does not count, nor what is said about the
  model, its data or the machine;
- **wrong in silence**: there should be none;
- **failed**: another exception, or no result within the time limit.

Approximations (Laplace, SVI, Pathfinder) are judged by the exact posterior as well.
"""


def refused(row: dict[str, Any]) -> bool:
    """Return whether the call raised an error that says why, instead of returning a fit."""
    return row["verdict"] == TOLD and "message" in row


def summary(rows: Iterable[dict[str, Any]]) -> str:
    """Return the counts of the verdicts in one line."""
    verdicts = [row["verdict"] for row in rows]
    counts = {verdict: verdicts.count(verdict) for verdict in VERDICTS}
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)


def write(path: Path) -> None:
    """Write the page beside the results."""
    stored = json.loads(path.read_text())["rows"]
    everything = [row for rows in stored.values() for row in rows]
    seeds = len({row["seed"] for row in everything})
    count = f"{len(stored)} models, {seeds} seed{'s' * (seeds > 1)}, {len(everything)} fits:"
    lines = [INTRODUCTION, count, ""]
    lines += [
        "| method | fits | right | wrong and told | of these refused | told although right "
        "| failed | wrong in silence | median seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for method in [*METHODS, "all"]:
        rows = [row for row in everything if method in (row["method"], "all")]
        if not rows:
            continue
        verdicts = [row["verdict"] for row in rows]
        alarms = verdicts.count(ALARM)
        seconds = statistics.median(row["seconds"] for row in rows)
        lines.append(
            f"| {method} | {len(rows)} | {verdicts.count(RIGHT)} | {verdicts.count(TOLD)} "
            f"| {sum(map(refused, rows))} | {alarms} ({alarms / len(rows):.1%}) "
            f"| {verdicts.count(FAILED)} | {verdicts.count(SILENT)} | {seconds:.2f} |"
        )
    lines += ["", *by_model(stored), "", *at_fault(stored)]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")


def by_model(stored: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Return the table by model, with one mark a seed."""
    used = [
        m for m in METHODS if any(row["method"] == m for rows in stored.values() for row in rows)
    ]
    lines = [
        "One mark a seed: ✓ right, t wrong and told, r refused with an error, a told although "
        "right, **F** failed, **S** wrong in silence.",
        "",
        f"| model | {' | '.join(used)} |",
        f"| --- |{' --- |' * len(used)}",
    ]
    for name, rows in stored.items():
        marks = [
            " ".join(
                "r" if refused(row) else MARKS[row["verdict"]]
                for row in rows
                if row["method"] == method
            )
            for method in used
        ]
        lines.append(f"| {name.replace('_', ' ')}: {CASES[name].about} | {' | '.join(marks)} |")
    return lines


def at_fault(stored: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Return a list of the rows that are neither right nor wrong and told."""
    lines = []
    for name, rows in stored.items():
        for row in rows:
            if row["verdict"] in (RIGHT, TOLD):
                continue
            what = [*row["wrong"][:3], *row["findings"]]
            lines.append(
                f"- {name.replace('_', ' ')}, {row['method']}, seed {row['seed']}: "
                f"{row['verdict']}: {'; '.join(what)}"
            )
    found = ["Rows at fault:", "", *lines] if lines else ["No row is at fault."]
    return [*found, "", *refusals(stored)]


def refusals(stored: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Return a list of the models and methods that were refused, with the first sentence why."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for name, rows in stored.items():
        for row in filter(refused, rows):
            reason = row["message"].splitlines()[0].split(". ")[0]
            methods = reasons.setdefault((name, reason), [])
            if row["method"] not in methods:
                methods.append(row["method"])
    lines = [
        f"- {name.replace('_', ' ')}, {', '.join(methods)}: {reason.removesuffix('.')}."
        for (name, reason), methods in reasons.items()
    ]
    return ["Refused:", "", *lines] if lines else []
