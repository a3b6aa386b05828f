"""A hidden Markov model with two states, evaluated by the forward algorithm."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.peers.tasks import scalars

REFERENCE = "hmm_example-hmm_example"


def parameters(draws: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return scalars(draws, "theta1", "theta2", "mu")


def numpyro(data: dict[str, np.ndarray]) -> Any:
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.distributions import constraints

    def model(y):
        theta1 = numpyro.sample("theta1", dist.Dirichlet(jnp.ones(2)))
        theta2 = numpyro.sample("theta2", dist.Dirichlet(jnp.ones(2)))
        log_theta = jnp.log(jnp.stack([theta1, theta2]))
        ordered = dist.ImproperUniform(constraints.positive_ordered_vector, (), (2,))
        mu = numpyro.sample("mu", ordered)
        numpyro.factor("mu_prior", dist.Normal(jnp.array([3.0, 10.0]), 1.0).log_prob(mu).sum())
        emission = dist.Normal(mu, 1.0).log_prob(y[:, None])

        def step(forward, density):
            moved = jax.nn.logsumexp(forward[:, None] + log_theta, axis=0)
            return moved + density, None

        forward, _ = jax.lax.scan(step, emission[0], emission[1:])
        numpyro.factor("likelihood", jax.nn.logsumexp(forward))

    return model, (jnp.asarray(data["y"], float),)


def pymc(data: dict[str, np.ndarray]) -> Any:
    import pymc as pm
    import pytensor
    import pytensor.tensor as pt
    from pymc.distributions.transforms import Ordered

    with pm.Model() as model:
        theta1 = pm.Dirichlet("theta1", np.ones(2))
        theta2 = pm.Dirichlet("theta2", np.ones(2))
        log_theta = pt.log(pt.stack([theta1, theta2]))
        start = np.array([3.0, 10.0])
        mu = pm.Normal("mu", start, 1.0, transform=Ordered(positive=True), initval=start)
        emission = pm.logp(pm.Normal.dist(mu, 1.0), data["y"][:, None])
        forward, _ = pytensor.scan(
            lambda density, forward, log_theta: (
                pt.logsumexp(forward[:, None] + log_theta, axis=0) + density
            ),
            sequences=[emission[1:]],
            outputs_info=[emission[0]],
            non_sequences=[log_theta],
            strict=True,
        )
        pm.Potential("likelihood", pt.logsumexp(forward[-1]))
    return model


STAN = """
data {
  int<lower=0> N;
  vector[N] y;
}
parameters {
  simplex[2] theta1;
  simplex[2] theta2;
  positive_ordered[2] mu;
}
model {
  matrix[2, N] emission;
  matrix[2, 2] theta;
  mu[1] ~ normal(3, 1);
  mu[2] ~ normal(10, 1);
  theta[1] = theta1';
  theta[2] = theta2';
  for (k in 1 : 2) {
    emission[k] = -0.5 * square(y - mu[k])';
  }
  target += hmm_marginal(emission, theta, [0.5, 0.5]');
}
"""


def stan(data: dict[str, np.ndarray]) -> dict[str, Any]:
    return {"N": int(data["N"]), "y": data["y"]}
