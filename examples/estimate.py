"""Point estimation: a logistic regression by maximum likelihood and by MAP.

Which measurements of a tumour show whether it is benign? The model is fitted to real data, first
without priors, then with priors that shrink the coefficients.
"""

import warnings

import numpy as np
from sklearn.datasets import load_breast_cancer

import probdl
from probdl.models import logistic_regression

warnings.simplefilter("ignore", probdl.FindingWarning)  # the findings are printed below

data = load_breast_cancer()
order = np.random.default_rng(0).permutation(len(data.target))
train, test = order[:200], order[200:]
x = (data.data - data.data[train].mean(0)) / data.data[train].std(0)
x, y = x[:, :10], data.target.astype(float)  # the means of the ten measurements
names = [str(name).removeprefix("mean ") for name in data.feature_names[:10]]

scores = {}
for method in ("mle", "map"):
    fit = probdl.infer(
        logistic_regression, x[train], y[train], method=method, seed=1, coords={"predictor": names}
    )
    table = fit.summary().drop(index="intercept")
    clear = table[(table.ci_low > 0) | (table.ci_high < 0)]
    score = fit.log_predictive(x[test], y[test])
    scores[method] = score.total / len(test)
    print(f"{method}: change of the log odds of a benign tumour per sd of each measurement\n")
    print(f"{table.round(2).to_string()}\n")
    print(f"Intervals without zero: {', '.join(clear.index) or 'none'}.")
    print(f"Findings: {fit.diagnose()}")
    print(f"Mean log score of {len(test)} held-out tumours: {scores[method]:.3f} nats\n")

better = max(scores, key=scores.get)
print(f"For held-out tumours, {better} predicts better. The largest maximum likelihood estimates")
print("have the largest standard errors, and the prior shrinks them to zero.")
