"""Series: hidden Markov models, autoregressions, epidemics, forecasts, Gaussian processes."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.contrib.gp as gp
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.contrib.forecast import ForecastingModel
from pyro.infer.autoguide import AutoDelta
from pyro.nn import PyroSample
from pyro.ops.indexing import Vindex

from tests.pyro_programs.programs.registry import about, program, seeded


def _states(length: int) -> torch.Tensor:
    z, states = 0, []
    for u in torch.rand(length, generator=seeded(0)):
        z = z if u < 0.8 else 1 - z
        states.append(z)
    return torch.tensor(states)


STATES = _states(60)
SEEN = 4.0 * STATES + torch.randn(60, generator=seeded(1))


def _transition(stay):
    return torch.stack(
        [
            torch.stack([stay[..., 0], 1 - stay[..., 0]], -1),
            torch.stack([1 - stay[..., 1], stay[..., 1]], -1),
        ],
        -2,
    )


def hidden_markov(y):
    """A hidden Markov model as a loop over time."""
    stay = pyro.sample("stay", dist.Beta(2.0, 2.0).expand([2]).to_event(1))
    transition = _transition(stay)
    loc = pyro.sample("loc", dist.Normal(torch.tensor([0.0, 3.0]), 2.0).to_event(1))
    x = 0
    for t in pyro.markov(range(len(y))):
        x = pyro.sample(f"x_{t}", dist.Categorical(transition[x]), infer={"enumerate": "parallel"})
        pyro.sample(f"y_{t}", dist.Normal(loc[x], 1.0), obs=y[t])


MARKOV = about(loc=[0.0, 4.0], stay=[0.8, 0.8])
program("hidden Markov model, loop", hidden_markov, (SEEN[:20],), about(loc=[0.0, 4.0]))


def discrete_hmm(y):
    stay = pyro.sample("stay", dist.Beta(2.0, 2.0).expand([2]).to_event(1))
    transition = _transition(stay)
    loc = pyro.sample("loc", dist.Normal(torch.tensor([0.0, 3.0]), 2.0).to_event(1))
    start = torch.tensor([0.5, 0.5]).log()
    pyro.sample("y", dist.DiscreteHMM(start, transition.log(), dist.Normal(loc, 1.0)), obs=y)


program("hidden Markov model, DiscreteHMM", discrete_hmm, (SEEN,), MARKOV)


def sequences(y, lengths):
    """Pyro's hmm.py, model 1: ragged sequences of binary tones."""
    transition = pyro.sample("transition", dist.Dirichlet(0.9 * torch.eye(2) + 0.1).to_event(1))
    emission = pyro.sample("emission", dist.Beta(2.0, 2.0).expand([2, 3]).to_event(2))
    tones = pyro.plate("tones", 3, dim=-1)
    with pyro.plate("sequences", len(y), dim=-2) as batch:
        lengths = lengths[batch]
        x = 0
        for t in pyro.markov(range(lengths.max())):
            with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                x = pyro.sample(
                    f"x_{t}", dist.Categorical(transition[x]), infer={"enumerate": "parallel"}
                )
                with tones:
                    pyro.sample(f"y_{t}", dist.Bernoulli(emission[x.squeeze(-1)]), obs=y[batch, t])


TONES = torch.bernoulli(torch.full((4, 6, 3), 0.5), generator=seeded(2))
LENGTHS = torch.tensor([6, 5, 4, 4])


def _rows_add_up(fit):
    assert abs(fit.draws["transition"].sum(-1) - 1).max() < 1e-6


program("ragged sequences", sequences, (TONES, LENGTHS), _rows_add_up)
program(
    "ragged sequences, AutoDelta",
    sequences,
    (TONES, LENGTHS),
    _rows_add_up,
    "svi",
    guide=AutoDelta(poutine.block(sequences, expose=["transition", "emission"])),
)


def second_order(y):
    """Two states of memory: pyro.markov(history=2)."""
    same = pyro.sample("same", dist.Beta(2.0, 2.0).expand([2, 2]).to_event(2))
    x, previous = torch.tensor(0), torch.tensor(0)
    for t in pyro.markov(range(len(y)), history=2):
        p = Vindex(same)[previous, x]
        probs = torch.stack([p, 1 - p], -1)
        previous, x = (
            x,
            pyro.sample(f"x_{t}", dist.Categorical(probs), infer={"enumerate": "parallel"}),
        )
        pyro.sample(f"y_{t}", dist.Normal(4.0 * x, 1.0), obs=y[t])


def _between(fit):
    assert 0.3 < fit.draws["same"].mean() < 1


program("a chain with a memory of two", second_order, (SEEN[:10],), _between)


def gaussian_hmm(y):
    decay = pyro.sample("decay", dist.Beta(5.0, 2.0))
    noise = pyro.sample("noise", dist.LogNormal(-1.0, 0.5))
    eye = torch.eye(1)
    steps = dist.Normal(torch.zeros(1), 0.3).to_event(1)
    process = dist.GaussianHMM(
        dist.Normal(torch.zeros(1), 1.0).to_event(1),
        decay[..., None, None] * eye,
        steps,
        eye,
        dist.Normal(torch.zeros(1), noise[..., None]).to_event(1),
        duration=len(y),
    )
    pyro.sample("y", process, obs=y)


def _walk(length: int) -> torch.Tensor:
    x, values = 0.0, []
    for e in torch.randn(length, generator=seeded(3)):
        x = 0.9 * x + 0.3 * float(e)
        values.append(x)
    return torch.tensor(values)


LEVEL = _walk(80)
NOISY = LEVEL + 0.4 * torch.randn(80, generator=seeded(4))
program("linear Gaussian state space", gaussian_hmm, (NOISY[:, None],), about(decay=0.9, noise=0.4))


def autoregression(y):
    phi = pyro.sample("phi", dist.Uniform(-1.0, 1.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("time", len(y) - 1):
        pyro.sample("y", dist.Normal(phi * y[:-1], sigma), obs=y[1:])


program("autoregression", autoregression, (LEVEL,), about(phi=0.9, sigma=0.3))


def loop(y):
    """A latent level in a Python loop."""
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    x = torch.zeros(())
    for t in range(len(y)):
        x = pyro.sample(f"x_{t}", dist.Normal(x, 0.3))
        pyro.sample(f"y_{t}", dist.Normal(x, sigma), obs=y[t])


program("a latent level in a loop", loop, (NOISY[:40],), about(sigma=0.4))


def volatility(y):
    a = pyro.sample("a", dist.HalfNormal(0.5))
    b = pyro.sample("b", dist.Uniform(0.0, 1.0))
    variance, total = torch.ones(()), 0.0
    for t in range(1, len(y)):
        variance = 0.1 + a * y[t - 1] ** 2 + 0.9 * b * variance
        total = total + dist.Normal(0.0, variance.sqrt()).log_prob(y[t])
    pyro.factor("y", total)


def _in_range(fit):
    assert 0 < fit.draws["b"].mean() < 1


program("GARCH by factor", volatility, (NOISY[:60],), _in_range)


def epidemic(population, cases):
    """Infections as a deterministic recursion, with reported cases."""
    r0 = pyro.sample("r0", dist.LogNormal(0.5, 0.5))
    rho = pyro.sample("rho", dist.Beta(5.0, 5.0))
    s, i = torch.tensor(population - 3.0), torch.tensor(3.0)
    for t, seen in enumerate(cases):
        new = s * (1 - torch.exp(-r0 / 4 * i / population))
        s, i = s - new, i + new - i / 4
        pyro.sample(f"cases_{t}", dist.Poisson(rho * new + 0.1), obs=seen)


def _cases() -> torch.Tensor:
    s, i, cases = 997.0, 3.0, []
    for _ in range(20):
        new = s * (1 - np.exp(-2.5 / 4 * i / 1000))
        s, i = s - new, i + new - i / 4
        cases.append(0.5 * new + 0.1)
    return torch.poisson(torch.tensor(cases), generator=seeded(5))


program("an epidemic", epidemic, (1000, _cases()), about(r0=2.5, rho=0.5))


class Trend(ForecastingModel):
    def model(self, zero_data, covariates):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        noise = pyro.sample("noise", dist.LogNormal(-1.0, 1.0))
        with self.time_plate:
            step = pyro.sample("step", dist.Normal(0.0, 0.1))
        level = step.cumsum(-1)[..., None] + slope[..., None, None] * covariates
        self.predict(dist.Normal(0.0, noise[..., None]), level)


TIME = torch.linspace(-1.0, 1.0, 30)[:, None]
TRENDING = 2.0 * TIME + 0.3 * torch.randn(30, 1, generator=seeded(6))
program("ForecastingModel", Trend(), (TRENDING, TIME), about(noise=0.3, slope=2.0))


class Process:
    """pyro.contrib.gp, with a prior of its kernel."""

    def __init__(self):
        kernel = gp.kernels.RBF(input_dim=1)
        kernel.lengthscale = PyroSample(dist.LogNormal(0.0, 1.0))
        x = torch.linspace(0.0, 3.0, 15)
        self.gp = gp.models.GPRegression(x, torch.sin(2 * x), kernel, noise=torch.tensor(0.05))

    def __call__(self):
        return self.gp.model()


def _a_wave(fit):
    assert 0.3 < fit.draws["kernel.lengthscale"].mean() < 2


program("pyro.contrib.gp", Process().gp.model, (), _a_wave)


def kernel_process(x, y):
    """A Gaussian process, written out."""
    length = pyro.sample("length", dist.LogNormal(0.0, 1.0))
    noise = pyro.sample("noise", dist.LogNormal(-1.0, 1.0))
    k = torch.exp(-0.5 * ((x[:, None] - x) / length) ** 2) + noise**2 * torch.eye(len(x))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), covariance_matrix=k), obs=y)


GRID = torch.linspace(0.0, 6.0, 40)
WAVE = torch.sin(GRID) + 0.3 * torch.randn(40, generator=seeded(7))
program("Gaussian process", kernel_process, (GRID, WAVE), about(noise=0.3))


def matern(y):
    length = pyro.sample("length", dist.LogNormal(1.0, 1.0))
    times = torch.arange(len(y), dtype=y.dtype)
    gap = (times[:, None] - times).abs() * 3**0.5 / length
    k = (1 + gap) * torch.exp(-gap) + 0.16 * torch.eye(len(y))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(y)), covariance_matrix=k), obs=y)


def _positive(fit):
    assert (fit.draws["length"] > 0).all()


program("Matérn process", matern, (NOISY[:30],), _positive)
