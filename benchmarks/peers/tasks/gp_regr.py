"""A Gaussian process at eleven points; sigma is the noise variance on the diagonal."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.peers.tasks import scalars

REFERENCE = "gp_pois_regr-gp_regr"


def parameters(draws: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return scalars(draws, "rho", "alpha", "sigma")


def numpyro(data: dict[str, np.ndarray]) -> Any:
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    def model(x, y):
        rho = numpyro.sample("rho", dist.Gamma(25.0, 4.0))
        alpha = numpyro.sample("alpha", dist.HalfNormal(2.0))
        sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
        kernel = alpha**2 * jnp.exp(-((x[:, None] - x) ** 2) / (2 * rho**2))
        covariance = kernel + sigma * jnp.eye(len(x))
        numpyro.sample("y", dist.MultivariateNormal(0.0, covariance), obs=y)

    return model, (jnp.asarray(data["x"], float), jnp.asarray(data["y"], float))


def pymc(data: dict[str, np.ndarray]) -> Any:
    import pymc as pm
    import pytensor.tensor as pt

    with pm.Model() as model:
        rho = pm.Gamma("rho", 25.0, 4.0)
        alpha = pm.HalfNormal("alpha", 2.0)
        sigma = pm.HalfNormal("sigma", 1.0)
        process = pm.gp.Marginal(cov_func=alpha**2 * pm.gp.cov.ExpQuad(1, ls=rho))
        x, y = data["x"][:, None].astype(float), data["y"].astype(float)
        process.marginal_likelihood("y", X=x, y=y, sigma=pt.sqrt(sigma), jitter=0.0)
    return model


STAN = """
data {
  int<lower=1> N;
  array[N] real x;
  vector[N] y;
}
parameters {
  real<lower=0> rho;
  real<lower=0> alpha;
  real<lower=0> sigma;
}
model {
  matrix[N, N] covariance = add_diag(gp_exp_quad_cov(x, alpha, rho), sigma);
  rho ~ gamma(25, 4);
  alpha ~ normal(0, 2);
  sigma ~ normal(0, 1);
  y ~ multi_normal_cholesky(rep_vector(0, N), cholesky_decompose(covariance));
}
"""


def stan(data: dict[str, np.ndarray]) -> dict[str, Any]:
    return {"N": int(data["N"]), "x": data["x"], "y": data["y"]}
