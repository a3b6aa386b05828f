"""Logistic regression with an intercept for each of 531 groups: 536 parameters, 6,366 rows.

Data: Fair's survey of marriages (1978) from statsmodels; the outcome is whether there was an
affair. The groups are the cells of age, children, religiousness and the husband's occupation.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.peers.tasks import scalars

REFERENCE = None
CELLS = ["age", "children", "religious", "occupation_husb"]
SLOPES = ["rate_marriage", "yrs_married", "educ"]


def data() -> dict[str, np.ndarray]:
    from statsmodels.datasets import fair

    table = fair.load_pandas().data
    x = table[SLOPES].to_numpy(float)
    return {
        "x": (x - x.mean(0)) / x.std(0),
        "group": table.groupby(CELLS).ngroup().to_numpy(np.int64),
        "y": (table["affairs"] > 0).to_numpy(np.int64),
    }


def parameters(draws: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return scalars(draws, "mu", "tau", "slope", "effect")


def pyro(data: dict[str, np.ndarray]) -> Any:
    import pyro
    import pyro.distributions as dist

    groups = int(data["group"].max()) + 1

    def model(x, group, y):
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        tau = pyro.sample("tau", dist.HalfNormal(1.0))
        with pyro.plate("predictor", x.shape[-1]):
            slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("group", groups):
            effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
        logits = mu + tau * effect[group] + x @ slope
        with pyro.plate("obs", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)

    return model, (data["x"], data["group"], data["y"].astype(float))


def numpyro(data: dict[str, np.ndarray]) -> Any:
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    groups = int(data["group"].max()) + 1

    def model(x, group, y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
        tau = numpyro.sample("tau", dist.HalfNormal(1.0))
        with numpyro.plate("predictor", x.shape[-1]):
            slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
        with numpyro.plate("group", groups):
            effect = numpyro.sample("effect", dist.Normal(0.0, 1.0))
        logits = mu + tau * effect[group] + x @ slope
        with numpyro.plate("obs", len(y)):
            numpyro.sample("y", dist.Bernoulli(logits=logits), obs=y)

    return model, tuple(jnp.asarray(data[name]) for name in ("x", "group", "y"))


def pymc(data: dict[str, np.ndarray]) -> Any:
    import pymc as pm

    x, group = data["x"], data["group"]
    with pm.Model() as model:
        mu = pm.Normal("mu", 0.0, 2.0)
        tau = pm.HalfNormal("tau", 1.0)
        slope = pm.Normal("slope", 0.0, 1.0, shape=x.shape[-1])
        effect = pm.Normal("effect", 0.0, 1.0, shape=int(group.max()) + 1)
        logits = mu + tau * effect[group] + x @ slope
        pm.Bernoulli("y", logit_p=logits, observed=data["y"])
    return model


STAN = """
data {
  int<lower=1> N;
  int<lower=1> K;
  int<lower=1> G;
  matrix[N, K] x;
  array[N] int<lower=1, upper=G> group;
  array[N] int<lower=0, upper=1> y;
}
parameters {
  real mu;
  real<lower=0> tau;
  vector[K] slope;
  vector[G] effect;
}
model {
  mu ~ normal(0, 2);
  tau ~ std_normal();
  slope ~ std_normal();
  effect ~ std_normal();
  vector[G] intercept = mu + tau * effect;
  y ~ bernoulli_logit_glm(x, intercept[group], slope);
}
"""


def stan(data: dict[str, np.ndarray]) -> dict[str, Any]:
    n, k = data["x"].shape
    group = data["group"] + 1
    return {"N": n, "K": k, "G": int(group.max()), "x": data["x"], "group": group, "y": data["y"]}
