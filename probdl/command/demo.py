"""The demonstration: the eight schools fitted by four methods, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from probdl.inference import infer
from probdl.models import eight_schools
from probdl.results.fit import Fit
from probdl.util.lazy import pandas as pd
from probdl.util.lazy import pyplot as plt

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["EFFECT", "LABELS", "METHODS", "SIGMA", "fit_schools", "plot_methods", "side_by_side"]

METHODS = ("mle", "map", "laplace", "nuts")
# Effects of coaching and their standard errors, in points: Rubin (1981), table 1.
SIGMA = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
EFFECT = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
LABELS = tuple("ABCDEFGH")


def fit_schools(progress: bool | None = None) -> Iterator[tuple[str, Fit]]:
    """Fit the eight schools by each method in turn.

    Args:
        progress: whether to show progress; None shows it on a terminal only.
    """
    coords = {"school": LABELS}
    for method in METHODS:
        yield (
            method,
            infer(
                eight_schools,
                SIGMA,
                EFFECT,
                method=method,
                seed=1,
                coords=coords,
                progress=progress,
            ),
        )


def side_by_side(fits: Mapping[str, Fit], *sites: str) -> pd.DataFrame:
    """Return a table of the estimates of several fits with their standard errors or sds."""
    columns = {}
    for name, fit in fits.items():
        table = fit.summary()
        table = table[table.index.str.split("[").str[0].isin(sites)]
        center, spread = ("estimate", "standard_error") if fit.is_point else ("mean", "sd")
        columns[name, "estimate"], columns[name, "±"] = table[center], table[spread]
    return pd.DataFrame(columns).round(2)


def plot_methods(fits: Mapping[str, Fit], effect: Any, labels: Sequence[str]) -> Axes:
    """Plot the estimate and the 95% interval of each method for each school."""
    _, ax = plt.subplots(figsize=(8, 4.2), layout="constrained")
    position = np.arange(len(labels))
    for i, (name, fit) in enumerate(fits.items()):
        if fit.is_point:
            center = fit.draws["theta"][0, 0]
            low, high = fit.stats["ci_low"]["theta"], fit.stats["ci_high"]["theta"]
        else:
            draws = fit.draws["theta"].reshape(-1, len(labels))
            center = draws.mean(0)
            low, high = np.quantile(draws, [0.025, 0.975], axis=0)
        at = position + 0.18 * (i - 1.5)
        ax.vlines(at, low, high, color=f"C{i}", lw=2)
        ax.plot(at, center, "o", color=f"C{i}", ms=5, label=name)
    ax.hlines(effect, position - 0.36, position + 0.36, color="k", lw=1, label="observed")
    ax.set(
        xticks=position,
        xticklabels=labels,
        xlabel="school",
        ylabel="effect of coaching, points",
        ylim=(-75, 85),
        title="One model, one call, four methods: eight schools",
    )
    ax.legend(ncols=5, fontsize=9, loc="lower center", frameon=False)
    return ax
