"""A mixture of two normal distributions with the components marginalized."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.peers.tasks import scalars

REFERENCE = "low_dim_gauss_mix-low_dim_gauss_mix"


def parameters(draws: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return scalars(draws, "mu", "sigma", "theta")


def numpyro(data: dict[str, np.ndarray]) -> Any:
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.distributions import constraints

    def model(y):
        ordered = dist.ImproperUniform(constraints.ordered_vector, (), (2,))
        mu = numpyro.sample("mu", ordered)
        numpyro.factor("mu_prior", dist.Normal(0.0, 2.0).log_prob(mu).sum())
        with numpyro.plate("component", 2):
            sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
        theta = numpyro.sample("theta", dist.Beta(5.0, 5.0))
        weights = dist.Categorical(probs=jnp.stack([theta, 1.0 - theta]))
        with numpyro.plate("obs", len(y)):
            numpyro.sample("y", dist.MixtureSameFamily(weights, dist.Normal(mu, sigma)), obs=y)

    return model, (jnp.asarray(data["y"], float),)


def pymc(data: dict[str, np.ndarray]) -> Any:
    import pymc as pm
    import pytensor.tensor as pt
    from pymc.distributions.transforms import ordered

    with pm.Model() as model:
        mu = pm.Normal("mu", 0.0, 2.0, shape=2, transform=ordered, initval=[-1.0, 1.0])
        sigma = pm.HalfNormal("sigma", 2.0, shape=2)
        theta = pm.Beta("theta", 5.0, 5.0)
        pm.NormalMixture("y", pt.stack([theta, 1.0 - theta]), mu, sigma, observed=data["y"])
    return model


STAN = """
data {
  int<lower=0> N;
  vector[N] y;
}
parameters {
  ordered[2] mu;
  array[2] real<lower=0> sigma;
  real<lower=0, upper=1> theta;
}
model {
  sigma ~ normal(0, 2);
  mu ~ normal(0, 2);
  theta ~ beta(5, 5);
  // Faster than log_mix() observation by observation.
  vector[N] one = log(theta / sigma[1]) - 0.5 * square((y - mu[1]) / sigma[1]);
  vector[N] two = log((1 - theta) / sigma[2]) - 0.5 * square((y - mu[2]) / sigma[2]);
  target += sum(one + log1p_exp(two - one));
}
"""


def stan(data: dict[str, np.ndarray]) -> dict[str, Any]:
    return {"N": int(data["N"]), "y": data["y"]}
