"""Autoregression of order five."""  # noqa: N999 - the name of the reference posterior

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.peers.tasks import scalars

REFERENCE = "arK-arK"


def parameters(draws: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return scalars(draws, "alpha", "beta", "sigma")


def _lags(data: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    y, order = data["y"].astype(float), int(data["K"])
    past = [y[order - k : len(y) - k] for k in range(1, order + 1)]
    return np.stack(past, -1), y[order:]


def numpyro(data: dict[str, np.ndarray]) -> Any:
    import numpyro
    import numpyro.distributions as dist

    def model(past, y):
        alpha = numpyro.sample("alpha", dist.Normal(0.0, 10.0))
        with numpyro.plate("lag", past.shape[-1]):
            beta = numpyro.sample("beta", dist.Normal(0.0, 10.0))
        sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
        with numpyro.plate("time", len(y)):
            numpyro.sample("y", dist.Normal(alpha + past @ beta, sigma), obs=y)

    return model, _lags(data)


def pymc(data: dict[str, np.ndarray]) -> Any:
    import pymc as pm

    past, y = _lags(data)
    with pm.Model() as model:
        alpha = pm.Normal("alpha", 0.0, 10.0)
        beta = pm.Normal("beta", 0.0, 10.0, shape=past.shape[-1])
        sigma = pm.HalfCauchy("sigma", 2.5)
        pm.Normal("y", alpha + past @ beta, sigma, observed=y)
    return model


STAN = """
data {
  int<lower=0> N;
  int<lower=0> K;
  matrix[N, K] past;
  vector[N] y;
}
parameters {
  real alpha;
  vector[K] beta;
  real<lower=0> sigma;
}
model {
  alpha ~ normal(0, 10);
  beta ~ normal(0, 10);
  sigma ~ cauchy(0, 2.5);
  y ~ normal_id_glm(past, alpha, beta, sigma);
}
"""


def stan(data: dict[str, np.ndarray]) -> dict[str, Any]:
    past, y = _lags(data)
    return {"N": len(y), "K": past.shape[-1], "past": past, "y": y}
