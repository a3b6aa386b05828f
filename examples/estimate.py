"""Point estimation: a logistic regression by maximum likelihood and by MAP.

Which measurements of a tumour tell whether it is benign? A logistic regression on real data,
first by the data alone, then with a prior that keeps the coefficients small.
"""

import warnings

import numpy as np
from sklearn.datasets import load_breast_cancer

import probdl
from probdl.models import logistic_regression

warnings.simplefilter("ignore", probdl.FindingWarning)  # printed below, fit by fit

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
    print(f"{method}: the log odds of a benign tumour, for one sd more of each measurement\n")
    print(f"{table.round(2).to_string()}\n")
    print(f"Intervals that leave out zero: {', '.join(clear.index) or 'none'}.")
    print(f"What the fit finds: {fit.diagnose()}")
    print(f"Mean log score of the {len(test)} tumours left out: {scores[method]:.3f} nats\n")

better = max(scores, key=scores.get)
print(f"On tumours left out {better} predicts better: the largest estimates by maximum likelihood")
print("are those that 200 tumours say least about, and the prior pulls these to zero.")
