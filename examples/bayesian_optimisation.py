"""Minimise a function of 4 inputs, of which only 2 matter, by a Gaussian process."""

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import torch

import probdl


def objective(x):
    """Return the six-hump camel function of the inputs 1 and 3; its minimum is -1.03."""
    u, v = 4 * x[:, 1] - 2, 2 * x[:, 3] - 1
    return (4 - 2.1 * u**2 + u**4 / 3) * u**2 + u * v + (4 * v**2 - 4) * v**2


def model(x, y, new=None):
    """Observe a Gaussian process; at new inputs, compute how much lower it is expected to be."""
    scale = pyro.sample("scale", dist.Gamma(2.0, torch.ones(x.shape[1])).to_event(1))
    kernel = lambda a, b: torch.exp(-0.5 * (((a[:, None] - b) / scale) ** 2).sum(-1))  # noqa: E731
    root = torch.linalg.cholesky(kernel(x, x) + 1e-4 * torch.eye(len(x)))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), scale_tril=root), obs=y)
    if new is not None:
        w = torch.cholesky_solve(kernel(x, new), root)
        q = dist.Normal(y @ w - y.min(), (1 - (kernel(x, new) * w).sum(0)).clamp(min=1e-9).sqrt())
        pyro.deterministic("gain", q.variance * q.log_prob(0.0).exp() - q.mean * q.cdf(0.0))


warnings.simplefilter("ignore", probdl.FindingWarning)  # a dozen points allow several functions
rng = np.random.default_rng(1)
x = rng.random((12, 4))
for _ in range(10):
    y = objective(x)
    fit = probdl.infer(model, x, y, seed=len(x))
    new = np.append(rng.random((200, 4)), rng.normal(x[y.argmin()], 0.1, (200, 4)).clip(0, 1), 0)
    best = fit.predict(x, y, new)["gain"].mean((0, 1)).argmax()
    x = np.append(x, new[[best]], 0)
    print(f"{len(x)} evaluations, the lowest {objective(x).min():.2f}")
