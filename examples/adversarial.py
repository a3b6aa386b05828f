"""Adversarial training: a generator without a density learns to draw two half moons.

The generator learns from a discriminator. A new discriminator and a two-sample test then evaluate
its draws on held-out data.
"""

import warnings

import pyro
import pyro.distributions as dist
import torch
from sklearn.datasets import make_moons

import probdl

warnings.simplefilter("ignore", probdl.FindingWarning)  # printed below

x = torch.tensor(make_moons(4000, noise=0.08, random_state=0)[0], dtype=torch.float32)
train, test = x[:3000], x[3000:]

torch.manual_seed(0)  # for the initial weights
generator = probdl.nn.MLP([4, 64, 64, 2])


def model(x=None, size=1):
    """Draw points of the plane."""
    pyro.module("generator", generator)
    with pyro.plate("data", len(x) if x is not None else size):
        z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        return pyro.deterministic("x", generator(z), event_dim=1)


print("The divergence is 0 for equal distributions and log 2 = 0.693 nats without overlap.\n")
for steps in (20, 1200):
    method = probdl.GAN(
        discriminator=probdl.nn.MLP([2, 64, 64, 1]), discriminator_steps=2, steps=steps,
        batch_size=128, ema=0.99,
    )  # fmt: skip
    fit = probdl.infer(model, train, method=method, seed=1)
    divergence = fit.divergence(test, steps=200).value
    print(f"After {steps} steps the Jensen-Shannon divergence is {divergence:.2f} nats or more.")

print(f"\nFindings: {fit.diagnose()}")
draws = torch.tensor(fit.predict(1000)["x"][0, 0])
upper = ((draws[:, 1] > 0.25).float().mean(), (test[:, 1] > 0.25).float().mean())
print(f"{upper[0]:.0%} of the draws and {upper[1]:.0%} of the data are in the upper half.")
print(f"Test of the maximum mean discrepancy: {probdl.mmd_test(draws, test, seed=1)}")
