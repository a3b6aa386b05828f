"""The main job: two models on real data, each fitted by four methods through one call.

Eight schools (Rubin, 1981) and a logistic regression on scikit-learn's breast cancer data.
Prints the summaries side by side and the score of each method on data held out, and writes two
plots to output/. Run it as `make demo`.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import arviz as az
import matplotlib as mpl
import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer

import probdl
from probdl.models import eight_schools, logistic_regression

mpl.use("Agg")
OUTPUT = Path("output")
METHODS = {
    "mle": "mle",
    "map": "map",
    "laplace": "laplace",
    "nuts": probdl.NUTS(draws=500, warmup=500),
}


def side_by_side(fits: dict[str, probdl.Fit], sites: list[str]) -> pd.DataFrame:
    """Put the estimates of several fits, and how far each is trusted, beside one another."""
    columns = {}
    for name, fit in fits.items():
        table = fit.summary()
        table = table[table.index.str.split("[").str[0].isin(sites)]
        kind = ["estimate", "standard_error"] if fit.is_point else ["mean", "sd"]
        for source, label in zip(kind, ("estimate", "± "), strict=True):
            columns[name, label] = table[source]
    return pd.DataFrame(columns).round(2)


def main() -> None:
    """Fit, print and plot."""
    OUTPUT.mkdir(exist_ok=True)
    warnings.simplefilter("ignore", probdl.FindingWarning)  # printed below, fit by fit

    sigma = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    effect = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    schools = {"school": ["A", "B", "C", "D", "E", "F", "G", "H"]}
    fits = {
        name: probdl.infer(eight_schools, sigma, effect, method=method, seed=1, coords=schools)
        for name, method in METHODS.items()
    }
    print("Eight schools: what coaching adds to the score, in points\n")
    print(side_by_side(fits, ["mu", "tau", "theta"]).to_string(), "\n")
    for name, fit in fits.items():
        print(f"{name}: {fit.diagnose()}")

    data = load_breast_cancer()
    x = (data.data - data.data.mean(0)) / data.data.std(0)
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[:400], order[400:]
    columns = list(range(10))  # the means of the ten measurements
    x = x[:, columns]
    y = data.target.astype(float)
    names = {"predictor": [str(n).removeprefix("mean ") for n in data.feature_names[columns]]}
    cancer = {
        name: probdl.infer(
            logistic_regression, x[train], y[train], method=method, seed=1, coords=names
        )
        for name, method in METHODS.items()
    }
    print("\nBreast cancer: the log odds that a tumour is benign, by standardised measurement\n")
    print(side_by_side(cancer, ["intercept", "beta"]).to_string(), "\n")
    for name, fit in cancer.items():
        print(f"{name}: {fit.diagnose()}")
    scores = {
        name: fit.log_predictive(x[test], y[test]).total / len(test) for name, fit in cancer.items()
    }
    print(
        f"\nHeld out, {len(test)} tumours: mean log predictive density, nats (higher is better)\n"
    )
    print(pd.Series(scores).round(4).to_string())

    for name, plot in {
        "trace": az.plot_trace(fits["nuts"].idata, var_names=["mu", "tau"]),
        "posterior_predictive": az.plot_ppc(fits["nuts"].idata, num_pp_samples=100),
    }.items():
        path = OUTPUT / f"eight_schools_{name}.png"
        np.ravel(plot)[0].figure.savefig(path, dpi=120, bbox_inches="tight")
        print(f"\nwrote {path}", end="")
    print()


if __name__ == "__main__":
    main()
