"""The demonstration: two models of real data, each fitted by four methods.

The models are the eight schools (Rubin, 1981) and a logistic regression on scikit-learn's breast
cancer data. Prints the summaries side by side, the findings of each fit and the scores on held-out
data, and writes three plots to output/. Run it with `make demo`.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer

import probdl
from probdl.command.demo import EFFECT, LABELS, METHODS, SIGMA, plot_methods, side_by_side
from probdl.models import eight_schools, logistic_regression
from probdl.plots import plot_fit

mpl.use("Agg")
OUTPUT = Path("output")


def fit_all(model: Callable[..., Any], *data: Any, **options: Any) -> dict[str, probdl.Fit]:
    """Fit a model by each method, and print the time and the findings of each fit."""
    fits = {}
    for method in METHODS:
        start = time.perf_counter()
        fits[method] = probdl.infer(model, *data, method=method, seed=1, **options)
        seconds = time.perf_counter() - start
        print(f"{method} ({seconds:.2f} s): {fits[method].diagnose()}")
    return fits


def save(name: str) -> None:
    """Write the current figure."""
    path = OUTPUT / f"eight_schools_{name}.png"
    plt.gcf().savefig(path, dpi=120, bbox_inches="tight")
    plt.close("all")
    print(f"wrote {path}")


def main() -> None:
    """Fit, print and plot."""
    OUTPUT.mkdir(exist_ok=True)
    warnings.simplefilter("ignore", probdl.FindingWarning)  # the findings are printed below

    print("Eight schools: the effect of coaching on the score, in points\n")
    schools = fit_all(eight_schools, SIGMA, EFFECT, coords={"school": LABELS})
    print(f"\n{side_by_side(schools, 'mu', 'tau', 'theta').to_string()}\n")

    print("\nBreast cancer: log odds of a benign tumour per standardised measurement\n")
    data = load_breast_cancer()
    order = np.random.default_rng(0).permutation(len(data.target))
    train, test = order[:400], order[400:]
    x = data.data[:, :10]  # the means of the ten measurements
    x = (x - x[train].mean(0)) / x[train].std(0)
    y = data.target.astype(float)
    names = [str(name).removeprefix("mean ") for name in data.feature_names[:10]]
    cancer = fit_all(logistic_regression, x[train], y[train], coords={"predictor": names})
    print(f"\n{side_by_side(cancer, 'intercept', 'beta').to_string()}\n")
    scores = pd.Series({m: fit.log_predictive(x[test], y[test]).total for m, fit in cancer.items()})
    print(f"Mean log predictive density of {len(test)} held-out tumours, in nats (0 is best)\n")
    print(f"{(scores / len(test)).round(4).to_string()}\n")

    plot_methods(schools, EFFECT, LABELS)
    save("methods")
    plot_fit(schools["nuts"], "trace", ["mu", "tau"])
    save("trace")
    plot_fit(schools["nuts"], "ppc")
    save("posterior_predictive")


if __name__ == "__main__":
    main()
