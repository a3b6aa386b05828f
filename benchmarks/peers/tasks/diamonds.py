"""Regression of 5,000 prices on 24 correlated predictors."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.peers.tasks import scalars

REFERENCE = "diamonds-diamonds"


def parameters(draws: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return scalars(draws, "b", "Intercept", "sigma")


def _centred(data: dict[str, np.ndarray]) -> np.ndarray:
    x = data["X"][:, 1:].astype(float)
    return x - x.mean(0)


def numpyro(data: dict[str, np.ndarray]) -> Any:
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    def model(x, y):
        with numpyro.plate("predictor", x.shape[-1]):
            b = numpyro.sample("b", dist.Normal(0.0, 1.0))
        intercept = numpyro.sample("Intercept", dist.StudentT(3.0, 8.0, 10.0))
        half = dist.FoldedDistribution(dist.StudentT(3.0, 0.0, 10.0))
        sigma = numpyro.sample("sigma", half)
        with numpyro.plate("obs", len(y)):
            numpyro.sample("y", dist.Normal(intercept + x @ b, sigma), obs=y)

    return model, (jnp.asarray(_centred(data)), jnp.asarray(data["Y"], float))


def pymc(data: dict[str, np.ndarray]) -> Any:
    import pymc as pm

    x = _centred(data)
    with pm.Model() as model:
        b = pm.Normal("b", 0.0, 1.0, shape=x.shape[-1])
        intercept = pm.StudentT("Intercept", nu=3.0, mu=8.0, sigma=10.0)
        sigma = pm.HalfStudentT("sigma", nu=3.0, sigma=10.0)
        pm.Normal("y", intercept + x @ b, sigma, observed=data["Y"])
    return model


STAN = """
data {
  int<lower=1> N;
  int<lower=1> K;
  vector[N] y;
  matrix[N, K] x;
}
parameters {
  vector[K] b;
  real Intercept;
  real<lower=0> sigma;
}
model {
  b ~ std_normal();
  Intercept ~ student_t(3, 8, 10);
  sigma ~ student_t(3, 0, 10);
  y ~ normal_id_glm(x, Intercept, b, sigma);
}
"""


def stan(data: dict[str, np.ndarray]) -> dict[str, Any]:
    x = _centred(data)
    return {"N": len(x), "K": x.shape[-1], "y": data["Y"], "x": x}
