"""Regression of test scores of children, with an interaction."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.peers.tasks import scalars

REFERENCE = "kidiq-kidscore_interaction"


def parameters(draws: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return scalars(draws, "beta", "sigma")


def _design(data: dict[str, np.ndarray]) -> np.ndarray:
    hs, iq = data["mom_hs"].astype(float), data["mom_iq"].astype(float)
    return np.stack([hs, iq, hs * iq], -1)


def numpyro(data: dict[str, np.ndarray]) -> Any:
    import numpyro
    import numpyro.distributions as dist
    from numpyro.distributions import constraints

    def model(x, y):
        beta = numpyro.sample("beta", dist.ImproperUniform(constraints.real_vector, (), (4,)))
        sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
        with numpyro.plate("obs", len(y)):
            numpyro.sample("y", dist.Normal(beta[0] + x @ beta[1:], sigma), obs=y)

    return model, (_design(data), data["kid_score"].astype(float))


def pymc(data: dict[str, np.ndarray]) -> Any:
    import pymc as pm

    with pm.Model() as model:
        beta = pm.Flat("beta", shape=4)
        sigma = pm.HalfCauchy("sigma", 2.5)
        mean = beta[0] + _design(data) @ beta[1:]
        pm.Normal("y", mean, sigma, observed=data["kid_score"])
    return model


STAN = """
data {
  int<lower=0> N;
  vector[N] y;
  matrix[N, 3] x;
}
parameters {
  vector[4] beta;
  real<lower=0> sigma;
}
model {
  sigma ~ cauchy(0, 2.5);
  y ~ normal_id_glm(x, beta[1], beta[2 : 4], sigma);
}
"""


def stan(data: dict[str, np.ndarray]) -> dict[str, Any]:
    return {"N": int(data["N"]), "y": data["kid_score"], "x": _design(data)}
