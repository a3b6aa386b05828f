"""Accuracy of SVI by default, and steps to the ELBO that Pyro reaches; part of `make bench-svi`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import NDArray
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal

import probdl
from tests.reference.files import read, scalars
from tests.reference.posteriors import POSTERIORS

SEEDS = (1, 2, 3)
SIZES = (50, 200, 1037, 10_000, 100_000)
SHIFT_MAX, SCALE_MAX = 0.1, 0.15  # of means, in posterior sd, and of sd, relative
PYRO_STEPS = 3000
WINDOW = 100  # steps over which an ELBO is averaged

Array = NDArray[Any]


class Case(NamedTuple):
    """A model with its data and the mean and standard deviation of each scalar."""

    name: str
    model: Callable[..., Any]
    data: tuple[Any, ...]
    parameters: Callable[[dict[str, Array]], dict[str, Array]]
    known: dict[str, tuple[float, float]]


def line(x: torch.Tensor, y: torch.Tensor) -> None:
    """A regression through the origin with unknown noise."""
    b = pyro.sample("b", dist.Normal(0.0, 10.0))
    s = pyro.sample("s", dist.HalfNormal(5.0))
    with pyro.plate("n", len(x)):
        pyro.sample("y", dist.Normal(b * x, s), obs=y)


def line_moments(x: Array, y: Array) -> dict[str, tuple[float, float]]:
    """Return mean and standard deviation of b and s, by quadrature over log(s)."""
    s = np.exp(np.linspace(-4, 3, 100_001))
    precision = (x @ x) / s**2 + 1 / 100
    mean = (x @ y) / s**2 / precision
    log_p = -len(x) * np.log(s) - (y @ y) / (2 * s**2) + mean**2 * precision / 2
    log_p += -np.log(precision) / 2 - s**2 / 50 + np.log(s)
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    found = {}
    for name, first, second in (("b", mean, 1 / precision + mean**2), ("s", s, s**2)):
        center = float(p @ first)
        found[name] = (center, float(p @ second - center**2) ** 0.5)
    return found


def cases(shared: Path) -> Iterator[Case]:
    """Yield five regressions and the reference posteriors."""
    for size in SIZES:
        rng = np.random.default_rng(size)
        x = rng.normal(size=size)
        y = 2 * x + 0.7 * rng.normal(size=size)
        yield Case(f"regression, N = {size}", line, (x, y), scalars, line_moments(x, y))
    for name, posterior in POSTERIORS.items():
        data, reference, _ = read(shared / "posteriordb", name)
        yield Case(
            name.split("-")[-1],
            posterior.model,
            posterior.arguments(data),
            lambda draws, p=posterior, d=data: scalars(p.parameters(draws, d)),
            {k: (v["mean"], v["sd"]) for k, v in reference.items()},
        )


def accuracy(shared: Path) -> list[dict[str, Any]]:
    """Fit each case by `method="svi"`; compare means and standard deviations with known ones."""
    rows = []
    for case in cases(shared):
        for seed in SEEDS:
            try:
                fit = probdl.infer(case.model, *case.data, method="svi", seed=seed)
            except probdl.ModelError as error:
                refused = {"case": case.name, "seed": seed, "verdict": "refused"}
                rows.append(refused | {"findings": [], "reason": str(error).split(". ")[0]})
                continue
            draws = case.parameters(fit.draws)
            shifts = [abs(draws[k].mean() - mean) / sd for k, (mean, sd) in case.known.items()]
            scales = [draws[k].std() / sd for k, (_, sd) in case.known.items()]
            off = max(scales, key=lambda ratio: abs(np.log(ratio)))
            told = [f.check for f in fit.diagnose() if f.severity != "info"]
            right = max(shifts) <= SHIFT_MAX and abs(off - 1) <= SCALE_MAX
            rows.append(
                {
                    "case": case.name,
                    "seed": seed,
                    "shift": float(max(shifts)),
                    "scale": float(off),
                    "findings": told,
                    "verdict": (
                        ("right" if not told else "right, with a finding")
                        if right
                        else ("wrong, with a finding" if told else "wrong in silence")
                    ),
                }
            )
            print(rows[-1], flush=True)
    return rows


def steps_to_elbo() -> list[dict[str, Any]]:
    """Count the steps to the ELBO of Pyro's own training, with the same guide and learning rate."""
    rows = []
    for size in SIZES[:4]:
        rng = np.random.default_rng(size)
        x = torch.from_numpy(rng.normal(size=size))
        y = 2 * x + 0.7 * torch.from_numpy(rng.normal(size=size))
        with pyro.get_param_store().scope(), pyro.validation_enabled(False):
            pyro.set_rng_seed(0)
            svi = SVI(line, AutoNormal(line), pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
            theirs = -np.array([svi.step(x, y) for _ in range(PYRO_STEPS)])
        method = probdl.SVI(guide="normal", steps=PYRO_STEPS, schedule="constant")
        ours = probdl.infer(line, x, y, method=method, seed=0).stats["elbo"]
        goal = float(theirs[-WINDOW:].mean()) - 1.0
        rows.append({"case": f"regression, N = {size}", "goal": goal})
        rows[-1] |= {"Pyro": first_above(theirs, goal), "probdl": first_above(ours, goal)}
        print(rows[-1], flush=True)
    return rows


def first_above(elbo: Array, goal: float) -> int:
    """Return the first step from which the ELBO, averaged over some steps, reaches a goal."""
    smooth = np.convolve(elbo, np.ones(WINDOW) / WINDOW, mode="valid")
    above = np.flatnonzero(smooth >= goal)
    return int(above[0]) if len(above) else len(elbo)


def report(accuracy: list[dict[str, Any]], steps: list[dict[str, Any]]) -> list[str]:
    """Return the lines of the page."""
    names = list(dict.fromkeys(row["case"] for row in accuracy))
    lines = [
        "",
        "## Default settings",
        "",
        f'`infer(model, data, method="svi")` with {len(SEEDS)} seeds, compared with known answers: '
        f"*right* means that every mean is within {SHIFT_MAX} posterior standard deviations and "
        f"every standard deviation within {SCALE_MAX:.0%}.",
        "",
        "| posterior | verdicts | largest shift of a mean, in sd | largest error of an sd, as a "
        "ratio | findings |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in names:
        rows = [row for row in accuracy if row["case"] == name]
        verdicts = [row["verdict"] for row in rows]
        counted = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts))
        if refused := [row["reason"] for row in rows if "reason" in row]:
            lines.append(f"| {name} | refused: {refused[0]} | | | |")
            continue
        worst = max((row["scale"] for row in rows), key=lambda ratio: abs(np.log(ratio)))
        told = sorted({f"`{check}`" for row in rows for check in row["findings"]})
        shift = max(row["shift"] for row in rows)
        lines.append(f"| {name} | {counted} | {shift:.2f} | {worst:.2f} | {', '.join(told)} |")
    lines += [
        "",
        f"Steps until the ELBO, averaged over {WINDOW} steps, is within 1 nat of what Pyro's "
        f"`AutoNormal` reaches in {PYRO_STEPS:,} steps; both with Adam, a constant learning rate "
        "of 0.01 and a mean-field guide. probdl first searches for the start, which costs a few "
        "hundred gradients.",
        "",
        "| model | Pyro | probdl |",
        "| --- | --- | --- |",
        *(f"| {row['case']} | {row['Pyro']} | {row['probdl']} |" for row in steps),
    ]
    return lines
