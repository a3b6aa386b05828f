"""Eight schools, non-centred."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.peers.tasks import scalars

REFERENCE = "eight_schools-eight_schools_noncentered"


def parameters(draws: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return scalars(draws, "theta", "mu", "tau")


def numpyro(data: dict[str, np.ndarray]) -> Any:
    import numpyro
    import numpyro.distributions as dist

    def model(sigma, y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
        with numpyro.plate("school", len(y)):
            trans = numpyro.sample("theta_trans", dist.Normal(0.0, 1.0))
            theta = numpyro.deterministic("theta", mu + tau * trans)
            numpyro.sample("y", dist.Normal(theta, sigma), obs=y)

    return model, (data["sigma"].astype(float), data["y"].astype(float))


def pymc(data: dict[str, np.ndarray]) -> Any:
    import pymc as pm

    with pm.Model() as model:
        mu = pm.Normal("mu", 0.0, 5.0)
        tau = pm.HalfCauchy("tau", 5.0)
        trans = pm.Normal("theta_trans", 0.0, 1.0, shape=8)
        theta = pm.Deterministic("theta", mu + tau * trans)
        pm.Normal("y", theta, data["sigma"], observed=data["y"])
    return model


STAN = """
data {
  int<lower=0> J;
  vector[J] y;
  vector<lower=0>[J] sigma;
}
parameters {
  vector[J] theta_trans;
  real mu;
  real<lower=0> tau;
}
transformed parameters {
  vector[J] theta = mu + tau * theta_trans;
}
model {
  theta_trans ~ std_normal();
  y ~ normal(theta, sigma);
  mu ~ normal(0, 5);
  tau ~ cauchy(0, 5);
}
"""


def stan(data: dict[str, np.ndarray]) -> dict[str, Any]:
    return {"J": int(data["J"]), "y": data["y"], "sigma": data["sigma"]}
