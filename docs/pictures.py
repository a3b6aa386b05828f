"""Draw the pictures of the documentation: `python docs/pictures.py` writes docs/findings/*.png.

Each picture there is of a fit that raises the finding of its name; others are in docs/.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import nn

import probdl
from probdl.findings import CHECKS
from probdl.models import eight_schools
from probdl.montecarlo import calibrate
from probdl.plots import plot_calibration

FOLDER = Path(__file__).parent / "findings"
SIGMA = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
EFFECT = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
PICTURES: dict[str, Callable[[Any], None]] = {}


def picture(draw: Callable[[Any], None]) -> Callable[[Any], None]:
    """Register a function that draws the finding of its name."""
    PICTURES[draw.__name__] = draw
    return draw


def fitted(check: str, model: Any, *args: Any, **options: Any) -> Any:
    """Fit a model, and make sure that the finding is raised."""
    fit = probdl.infer(model, *args, seed=1, progress=False, **options)
    raised = [finding.check for finding in fit.diagnose()]
    joined = [finding.message for finding in fit.diagnose() if "Also:" in finding.message]
    assert check in raised or joined, f"{check} was not raised; these were: {raised}"
    return fit


@picture
def forecast(ax: Any) -> None:
    """An autoregression and its forecast."""
    rng = np.random.default_rng(0)
    y = 5 + np.zeros(60)
    for t in range(1, 60):
        y[t] = 5 + 0.8 * (y[t - 1] - 5) + rng.normal(0, 0.5)

    def model(y: Any, horizon: int = 0) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        phi = pyro.sample("phi", dist.Uniform(-1.0, 1.0))
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        with pyro.plate("time", len(y) - 1):
            pyro.sample("y", dist.Normal(mean + phi * (y[:-1] - mean), sigma), obs=y[1:])
        last, future = y[-1], []
        for h in range(horizon):
            last = pyro.sample(f"y_{h + 1}", dist.Normal(mean + phi * (last - mean), sigma))
            future.append(last)
        if horizon:
            pyro.deterministic("forecast", torch.stack(future, -1), event_dim=1)

    draws = probdl.infer(model, y, seed=1).predict(y, horizon=12)["forecast"]
    low, middle, high = np.quantile(draws, [0.055, 0.5, 0.945], axis=(0, 1))
    ax.plot(range(60), y, "k.")
    ax.fill_between(np.arange(60, 72), low, high, alpha=0.3, label="89% interval")
    ax.plot(np.arange(60, 72), middle, label="median")
    ax.legend()


def traces(ax: Any, draws: Any, name: str) -> None:
    """Plot the chains of one scalar."""
    for chain in draws:
        ax.plot(chain, linewidth=0.6, alpha=0.8)
    ax.set(xlabel="draw", ylabel=name)


def centred(sigma: Any, y: Any) -> None:
    """Eight schools, centred."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def two_modes(y: Any) -> None:
    """A mean that the data know up to its sign."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("obs", len(y)):
        pyro.sample("y", dist.Normal(mu.abs(), 1.0), obs=y)


def cauchy() -> None:
    """A distribution without a mean."""
    pyro.sample("x", dist.Cauchy(0.0, 1.0))


@picture
def rhat(ax: Any) -> None:
    """Chains that were stopped before they met."""
    method = probdl.NUTS(draws=100, warmup=5, chains=4, mass_matrix="diag")
    fit = fitted("rhat", centred, SIGMA, EFFECT, method=method)
    traces(ax, fit.draws["mu"], "mu")
    ax.set_title("chains that disagree")


@picture
def multimodal(ax: Any) -> None:
    """Chains at two modes."""
    method = probdl.NUTS(draws=300, warmup=300, chains=4)
    fit = fitted("multimodal", two_modes, np.full(20, 4.0), method=method)
    traces(ax, fit.draws["mu"], "mu")
    ax.set_title("each chain at one of two modes")


@picture
def ess(ax: Any) -> None:
    """A random walk that moves slowly."""
    method = probdl.Metropolis(draws=500, warmup=200, chains=2, thin=1)
    fit = fitted("ess", centred, SIGMA, EFFECT, method=method)
    traces(ax, fit.draws["tau"], "tau")
    ax.set_title("successive draws are almost the same")


@picture
def mcse(ax: Any) -> None:
    """The running mean of a heavy tail."""
    fit = probdl.infer(cauchy, method=probdl.NUTS(draws=1000, chains=4), seed=1, progress=False)
    for chain in fit.draws["x"]:
        ax.plot(chain.cumsum() / np.arange(1, len(chain) + 1), linewidth=1)
    ax.set(xlabel="draw", ylabel="mean so far", title="the mean of a heavy tail does not settle")


@picture
def divergences(ax: Any) -> None:
    """The funnel of a centred hierarchy."""
    fit = fitted("divergences", centred, SIGMA, EFFECT, method=probdl.NUTS(mass_matrix="diag"))
    where = fit.stats["diverging"].ravel().astype(bool)
    x, y = fit.draws["theta"][..., 0].ravel(), np.log(fit.draws["tau"]).ravel()
    ax.scatter(x, y, s=2, alpha=0.3)
    ax.scatter(x[where], y[where], s=14, color="C3", label="diverged")
    ax.set(xlabel="theta[0]", ylabel="log tau", title="the neck of the funnel is missed")
    ax.legend()


@picture
def bfmi(ax: Any) -> None:
    """Energies that change little from draw to draw."""

    def funnel() -> None:
        scale = pyro.sample("scale", dist.Normal(0.0, 3.0))
        pyro.sample("x", dist.Normal(torch.zeros(20), (scale / 2).exp()).to_event(1))

    fit = fitted("bfmi", funnel, method=probdl.NUTS(mass_matrix="diag"))
    energy = fit.stats["energy"]
    bins = np.linspace(-60, 60, 60)
    ax.hist((energy - energy.mean()).ravel(), bins, density=True, alpha=0.6, label="energy")
    ax.hist(np.diff(energy).ravel(), bins, density=True, alpha=0.6, label="change per draw")
    ax.set(xlabel="nats", yticks=[], title="the energy changes slowly")
    ax.legend()


@picture
def tree_depth(ax: Any) -> None:
    """Trajectories that end at the limit."""

    def narrow() -> None:
        scale = torch.logspace(-3, 0, 40)
        pyro.sample("x", dist.Normal(torch.zeros(40), scale).to_event(1))

    method = probdl.NUTS(draws=300, warmup=20, max_treedepth=6, mass_matrix="diag")
    fit = fitted("tree_depth", narrow, method=method)
    depths = fit.stats["tree_depth"].ravel()
    ax.hist(depths, bins=np.arange(0.5, 8.5), rwidth=0.9)
    ax.axvline(6, color="k", linestyle=":", label="max_treedepth")
    ax.set(xlabel="tree depth", ylabel="transitions", title="trajectories stop at the limit")
    ax.legend()


@picture
def pareto_k(ax: Any) -> None:
    """A normal approximation of a skewed posterior."""
    fit = fitted("pareto_k", eight_schools, SIGMA, EFFECT, method="laplace")
    right = probdl.infer(eight_schools, SIGMA, EFFECT, seed=1, progress=False)
    bins = np.linspace(-6, 7, 70)
    for name, of in (("Laplace", fit), ("NUTS", right)):
        ax.hist(np.log(of.draws["tau"]).ravel(), bins, density=True, alpha=0.6, label=name)
    ax.set(xlabel="log tau", yticks=[], title="the approximation is not the posterior")
    ax.legend()


@picture
def flat(ax: Any) -> None:
    """A likelihood that only knows a sum."""

    def total(y: Any) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 10.0))
        b = pyro.sample("b", dist.Normal(0.0, 10.0))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Normal(a + b, 1.0), obs=y)

    fitted("flat", total, np.ones(20), method="mle")
    grid = np.linspace(-3, 4, 100)
    a, b = np.meshgrid(grid, grid)
    ax.contourf(a, b, -10 * (a + b - 1) ** 2, levels=np.linspace(-60, 0, 13))
    ax.set(xlabel="a", ylabel="b", title="the log likelihood has a ridge, not a peak")


@picture
def not_converged(ax: Any) -> None:
    """An ELBO that still rises."""
    method = probdl.SVI(steps=1000, learning_rate=0.003, schedule="constant")
    x = np.random.default_rng(0).normal(size=(100, 3))
    y = 5 + x @ [3.0, -2.0, 4.0]
    fit = fitted("not_converged", probdl.models.linear_regression, x, y, method=method)
    ax.plot(fit.stats["elbo"], linewidth=0.8)
    ax.set(xlabel="step", ylabel="ELBO, nats", title="the ELBO still rises")


def ring(rows: int) -> torch.Tensor:
    """Draw from eight normals on a circle."""
    angle = 2 * np.pi * torch.randint(8, (rows,)) / 8
    return torch.stack([angle.cos(), angle.sin()], 1) * 2 + 0.1 * torch.randn(rows, 2)


def adversarial(**settings: Any) -> Any:
    """Return a generator of the ring, data, and a method."""
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2))

    def model(x: Any = None, size: int = 1) -> None:
        pyro.module("generator", generator)
        with pyro.plate("data", len(x) if x is not None else size):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.deterministic("x", generator(z), event_dim=1)

    discriminator = probdl.nn.MLP([2, 64, 64, 1], activation=nn.ReLU)
    x = ring(2000)
    return model, x, probdl.GAN(discriminator=discriminator, **settings)


@picture
def mode_collapse(ax: Any) -> None:
    """Draws that leave out parts of the data."""
    model, x, method = adversarial(steps=600, loss="minimax", learning_rate=3e-3)
    fit = fitted("mode_collapse", model, x, method=method)
    draws = fit.predict(num_samples=1000)["x"].reshape(-1, 2)
    ax.scatter(*x[:1000].T, s=3, alpha=0.5, label="data")
    ax.scatter(*draws.T, s=3, alpha=0.5, label="draws")
    ax.set(title="the draws miss most of the data")
    ax.legend()


@picture
def saturated(ax: Any) -> None:
    """A discriminator that knows everything."""
    settings = {"discriminator_learning_rate": 1e-2, "learning_rate": 1e-5, "steps": 500}
    model, x, method = adversarial(loss="minimax", **settings)
    fit = fitted("saturated", model, x + 6.0, method=method)
    ax.plot(fit.stats["d_real"], label="D(x)")
    ax.plot(fit.stats["d_fake"], label="D(G(z))")
    ax.set(xlabel="step", title="the discriminator tells all draws from data")
    ax.legend()


@picture
def prior_conflict(ax: Any) -> None:
    """Data in other units than the prior."""

    def model(y: Any) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    y = np.random.default_rng(0).normal(12.0, 1.0, size=30)
    fit = fitted("prior_conflict", model, y)
    prior = np.asarray(fit.to_idata(prior=1000).prior_predictive["y"]).reshape(-1, 30)
    ax.hist(prior.mean(1), 40, alpha=0.6, label="data sets from the prior")
    ax.axvline(y.mean(), color="C3", label="data")
    ax.set(xlabel="mean of y", yticks=[], title="the data are outside what the prior predicts")
    ax.legend()


@picture
def identification(ax: Any) -> None:
    """A site that the data know nothing of."""

    def model(y: Any) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("idle", dist.Normal(0.0, 1.0))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    fit = fitted("identification", model, np.random.default_rng(0).normal(size=30))
    prior = np.random.default_rng(1).normal(size=4000)
    bins = np.linspace(-4, 4, 50)
    ax.hist(prior, bins, density=True, alpha=0.6, label="prior")
    ax.hist(fit.draws["idle"].ravel(), bins, density=True, alpha=0.6, label="posterior")
    ax.set(xlabel="idle", yticks=[], title="the posterior is the prior")
    ax.legend()


@picture
def calibration(ax: Any) -> None:
    """Ranks that are not uniform."""
    found = calibrate(
        eight_schools,
        "laplace",
        (SIGMA, EFFECT),
        simulations=100,
        workers=1,
        seed=1,
        progress=False,
    )
    assert "calibration" in [finding.check for finding in found.findings]
    plt.close(ax.figure)
    plot_calibration(found)


def main() -> None:
    """Draw the pictures that are named on the command line, or all."""
    mpl.use("Agg")
    warnings.simplefilter("ignore")
    FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:] or PICTURES:
        _, ax = plt.subplots(figsize=(5.0, 3.0), layout="constrained")
        PICTURES[name](ax)
        folder = FOLDER if name in CHECKS else FOLDER.parent
        plt.gcf().savefig(folder / f"{name}.png", dpi=80)
        plt.close("all")
        sys.stdout.write(f"{name}\n")


if __name__ == "__main__":
    main()
