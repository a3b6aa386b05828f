"""A Bayesian network with one hidden layer of 16 units, on 100 rows of 4 inputs: 97 parameters.

The units can be permuted and change sign, so the means of the weights are not comparable. Therefore
the values of the function at ten inputs and the noise are compared.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.peers.tasks import scalars

REFERENCE = None
WIDTH, INPUTS = 16, 4
PLACES = np.random.default_rng(1).normal(size=(10, INPUTS))


def data() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, INPUTS))
    return {"x": x, "y": np.sin(x[:, 0]) + 0.1 * rng.normal(size=100)}


def parameters(draws: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    hidden = np.tanh(PLACES @ draws["w1"] + draws["b1"][..., None, :])
    function = (hidden @ draws["w2"][..., None])[..., 0] / WIDTH**0.5
    return scalars({"f": function, "sigma": draws["sigma"]}, "f", "sigma")


def pyro(data: dict[str, np.ndarray]) -> Any:
    from benchmarks.models import bayesian_network

    return bayesian_network, (data["x"], data["y"])


def numpyro(data: dict[str, np.ndarray]) -> Any:
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    def model(x, y):
        normal = dist.Normal(0.0, 1.0)
        w1 = numpyro.sample("w1", normal.expand([INPUTS, WIDTH]).to_event(2))
        b1 = numpyro.sample("b1", normal.expand([WIDTH]).to_event(1))
        w2 = numpyro.sample("w2", normal.expand([WIDTH]).to_event(1))
        sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
        mean = jnp.tanh(x @ w1 + b1) @ w2 / WIDTH**0.5
        with numpyro.plate("obs", len(y)):
            numpyro.sample("y", dist.Normal(mean, sigma), obs=y)

    return model, (jnp.asarray(data["x"]), jnp.asarray(data["y"]))


def pymc(data: dict[str, np.ndarray]) -> Any:
    import pymc as pm
    import pytensor.tensor as pt

    with pm.Model() as model:
        w1 = pm.Normal("w1", 0.0, 1.0, shape=(INPUTS, WIDTH))
        b1 = pm.Normal("b1", 0.0, 1.0, shape=WIDTH)
        w2 = pm.Normal("w2", 0.0, 1.0, shape=WIDTH)
        sigma = pm.HalfNormal("sigma", 1.0)
        mean = pt.tanh(data["x"] @ w1 + b1) @ w2 / WIDTH**0.5
        pm.Normal("y", mean, sigma, observed=data["y"])
    return model


STAN = """
data {
  int<lower=1> N;
  int<lower=1> K;
  int<lower=1> W;
  matrix[N, K] x;
  vector[N] y;
}
parameters {
  matrix[K, W] w1;
  row_vector[W] b1;
  vector[W] w2;
  real<lower=0> sigma;
}
model {
  to_vector(w1) ~ std_normal();
  b1 ~ std_normal();
  w2 ~ std_normal();
  sigma ~ std_normal();
  y ~ normal(tanh(x * w1 + rep_matrix(b1, N)) * w2 / sqrt(W), sigma);
}
"""


def stan(data: dict[str, np.ndarray]) -> dict[str, Any]:
    n, k = data["x"].shape
    return {"N": n, "K": k, "W": WIDTH, "x": data["x"], "y": data["y"]}
