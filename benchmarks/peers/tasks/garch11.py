"""GARCH(1, 1): a recursion over 200 steps."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.peers.tasks import scalars

REFERENCE = "garch-garch11"


def parameters(draws: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return scalars(draws, "mu", "alpha0", "alpha1", "beta1")


def numpyro(data: dict[str, np.ndarray]) -> Any:
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.distributions import constraints

    def model(y, sigma1):
        mu = numpyro.sample("mu", dist.ImproperUniform(constraints.real, (), ()))
        alpha0 = numpyro.sample("alpha0", dist.ImproperUniform(constraints.positive, (), ()))
        alpha1 = numpyro.sample("alpha1", dist.Uniform(0.0, 1.0))
        # beta1 is flat on (0, 1 - alpha1), so the factor is the length of that interval.
        share = numpyro.sample("share", dist.Uniform(0.0, 1.0))
        beta1 = numpyro.deterministic("beta1", share * (1.0 - alpha1))
        numpyro.factor("beta1_flat", jnp.log1p(-alpha1))

        def step(variance, shock):
            variance = shock + beta1 * variance
            return variance, variance

        shocks = alpha0 + alpha1 * (y[:-1] - mu) ** 2
        _, later = jax.lax.scan(step, sigma1**2, shocks)
        sigma = jnp.sqrt(jnp.concatenate([sigma1[None] ** 2, later]))
        numpyro.sample("y", dist.Normal(mu, sigma), obs=y)

    return model, (jnp.asarray(data["y"], float), jnp.asarray(data["sigma1"], float))


def pymc(data: dict[str, np.ndarray]) -> Any:
    import pymc as pm
    import pytensor
    import pytensor.tensor as pt

    y, sigma1 = data["y"].astype(float), float(data["sigma1"])
    with pm.Model() as model:
        mu = pm.Flat("mu")
        alpha0 = pm.HalfFlat("alpha0")
        alpha1 = pm.Uniform("alpha1", 0.0, 1.0)
        # beta1 is flat on (0, 1 - alpha1), so the potential is the length of that interval.
        share = pm.Uniform("share", 0.0, 1.0)
        beta1 = pm.Deterministic("beta1", share * (1.0 - alpha1))
        pm.Potential("beta1_flat", pt.log1p(-alpha1))
        later, _ = pytensor.scan(
            lambda shock, variance, beta1: shock + beta1 * variance,
            sequences=[alpha0 + alpha1 * (y[:-1] - mu) ** 2],
            outputs_info=[pt.constant(sigma1**2, dtype="float64")],
            non_sequences=[beta1],
            strict=True,
        )
        sigma = pt.sqrt(pt.concatenate([[sigma1**2], later]))
        pm.Normal("y", mu, sigma, observed=y)
    return model


STAN = """
data {
  int<lower=0> T;
  vector[T] y;
  real<lower=0> sigma1;
}
parameters {
  real mu;
  real<lower=0> alpha0;
  real<lower=0, upper=1> alpha1;
  real<lower=0, upper=1 - alpha1> beta1;
}
model {
  vector[T - 1] shock = alpha0 + alpha1 * square(y[1 : T - 1] - mu);
  vector[T] variance;
  variance[1] = square(sigma1);
  for (t in 2 : T) {
    variance[t] = shock[t - 1] + beta1 * variance[t - 1];
  }
  y ~ normal(mu, sqrt(variance));
}
"""


def stan(data: dict[str, np.ndarray]) -> dict[str, Any]:
    return {"T": int(data["T"]), "y": data["y"], "sigma1": float(data["sigma1"])}
