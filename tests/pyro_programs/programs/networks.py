"""Networks: VAEs, semi-supervised and deep Markov models, flows, amortised guides."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import torch
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.infer import config_enumerate
from torch import nn
from torch.distributions import constraints
from torch.nn.functional import softplus

from tests.pyro_programs.programs.registry import exact, program, seeded

PIXELS = torch.bernoulli(torch.rand(40, 12, generator=seeded(0)), generator=seeded(1))


def improves(fit):
    """Check that training raised the ELBO, by more than its noise."""
    elbo = fit.stats["elbo"]
    start, end = elbo[:20], elbo[-100:]
    assert np.isfinite(elbo).all()
    assert end.mean() > start.mean() + 2 * end.std() / 10


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(12, 16), nn.Softplus(), nn.Linear(16, 4))
        self.decoder = nn.Sequential(nn.Linear(2, 16), nn.Softplus(), nn.Linear(16, 12))

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, scale = self.encoder(x).split(2, -1)
            pyro.sample("z", dist.Normal(loc, softplus(scale)).to_event(1))


_vae = VAE()
program("VAE", _vae.model, (PIXELS,), improves, "svi", engine="graph", guide=_vae.guide)


class SemiSupervised(nn.Module):
    """Kingma's M2: classes that are observed, or summed out by the guide."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.classifier = nn.Linear(12, 3)
        self.encoder, self.decoder = nn.Linear(15, 4), nn.Linear(5, 12)

    def model(self, x, y=None):
        pyro.module("net", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(x.new_ones(len(x), 3) / 3), obs=y)
            z, y = torch.broadcast_tensors(z[..., :1], y[..., :1])[0], y
            both = torch.cat([z.expand((*y.shape[:-1], 2)), y], -1)
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(both)).to_event(1), obs=x)

    def guide(self, x, y=None):
        with pyro.plate("data", len(x)):
            if y is None:
                y = pyro.sample("y", dist.OneHotCategorical(logits=self.classifier(x)))
            both = torch.cat([x.expand((*y.shape[:-1], 12)), y], -1)
            loc, scale = self.encoder(both).split(2, -1)
            pyro.sample("z", dist.Normal(loc, softplus(scale)).to_event(1))


CLASSES = torch.eye(3)[torch.arange(40) % 3]
_m2 = SemiSupervised()
program(
    "M2, supervised", _m2.model, (PIXELS, CLASSES), improves, "svi", engine="graph", guide=_m2.guide
)
program(
    "M2, unsupervised",
    _m2.model,
    (PIXELS,),
    improves,
    "svi",
    engine="graph",
    guide=config_enumerate(_m2.guide, "parallel", expand=True),
    steps=200,
)


class DeepMarkov(nn.Module):
    """A deep Markov model: a loop of networks, masks inside of events, a recurrent guide."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.step, self.emit = nn.Linear(2, 4), nn.Linear(2, 3)
        self.rnn, self.combine = nn.GRU(3, 6, batch_first=True), nn.Linear(8, 4)

    def model(self, x, mask):
        pyro.module("net", self)
        z = x.new_zeros(len(x), 2)
        with pyro.plate("sequences", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                loc, scale = self.step(z).split(2, -1)
                normal = dist.Normal(loc, softplus(scale))
                z = pyro.sample(f"z_{t}", normal.mask(mask[:, t : t + 1]).to_event(1))
                tone = dist.Bernoulli(logits=self.emit(z)).mask(mask[:, t : t + 1]).to_event(1)
                pyro.sample(f"x_{t}", tone, obs=x[:, t])

    def guide(self, x, mask):
        pyro.module("net", self)
        hidden, _ = self.rnn(x.flip(1))
        z = x.new_zeros(len(x), 2)
        with pyro.plate("sequences", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                both = torch.cat([z, hidden[:, x.shape[1] - 1 - t]], -1)
                loc, scale = self.combine(both).split(2, -1)
                normal = dist.Normal(loc, softplus(scale))
                z = pyro.sample(f"z_{t}", normal.mask(mask[:, t : t + 1]).to_event(1))


SONGS = torch.bernoulli(torch.rand(6, 5, 3, generator=seeded(2)), generator=seeded(3))
KEPT = torch.arange(5) < torch.tensor([5, 5, 4, 4, 3, 3])[:, None]
_dmm = DeepMarkov()
program(
    "deep Markov model",
    _dmm.model,
    (SONGS, KEPT),
    improves,
    "svi",
    engine="graph",
    guide=_dmm.guide,
    steps=300,
)


class Attend(nn.Module):
    """Attend, infer, repeat in little: a guide samples whether there is an object."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.presence, self.draw = nn.Linear(12, 1), nn.Linear(1, 12)

    def model(self, x):
        pyro.module("net", self)
        with pyro.plate("data", len(x)):
            here = pyro.sample("here", dist.Bernoulli(x.new_full((len(x), 1), 0.5)).to_event(1))
            what = pyro.sample("what", dist.Normal(x.new_zeros(len(x), 1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(here * self.draw(what), 0.5).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("net", self)
        with pyro.plate("data", len(x)):
            pyro.sample("here", dist.Bernoulli(logits=self.presence(x)).to_event(1))
            loc = pyro.param("loc", x.new_zeros(1))
            pyro.sample("what", dist.Normal(loc.expand(len(x), 1), 1.0).to_event(1))


_air = Attend()
program(
    "a guide that samples presence",
    _air.model,
    (PIXELS,),
    improves,
    "svi",
    engine="eager",
    guide=_air.guide,
    steps=150,
)


class Flow:
    """A guide that is a normalising flow."""

    def __init__(self, make):
        torch.manual_seed(0)
        self.flow = make()

    def __call__(self, y):
        pyro.module("flow", self.flow)
        base = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)
        pyro.sample("z", dist.TransformedDistribution(base, [self.flow]))


def correlated(y):
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(z.sum(-1), 0.5), obs=y)


# z given y: precision I + 1 1' n / 0.25.
_precision = torch.eye(2) + 4 * torch.ones(2, 2) / 0.25
_posterior = torch.linalg.inv(_precision)
_mean = _posterior @ torch.full((2,), 4 / 0.25)
CORRELATED = exact(z=(_mean, _posterior.diagonal().sqrt()))
program(
    "affine autoregressive flow",
    correlated,
    (torch.ones(4),),
    CORRELATED,
    "svi",
    guide=Flow(lambda: transforms.affine_autoregressive(2, hidden_dims=[8])),
    steps=1500,
)


def hierarchy(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("groups", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(theta, 1.0), obs=y)


GROUPS = torch.tensor([1.0, 2.0, 3.0, 2.0, 4.0])
_of_mu = 1 / (5 / 2 + 1 / 25)


class Amortised(nn.Module):
    """A network in the guide of a model without one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(1, 1)

    def forward(self, y):
        pyro.module("net", self.net)
        loc = pyro.param("loc", torch.tensor(0.0))
        scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
        pyro.sample("mu", dist.Normal(loc, scale))
        with pyro.plate("groups", len(y)):
            pyro.sample("theta", dist.Normal(self.net(y[:, None])[:, 0], 0.7))


program(
    "a network in the guide",
    hierarchy,
    (GROUPS,),
    lambda fit: np.testing.assert_allclose(
        fit.stats["params"]["loc"], _of_mu * GROUPS.sum() / 2, atol=0.25
    ),
    "svi",
    guide=Amortised(),
    learning_rate=0.02,
    steps=2000,
)


class Easy(EasyGuide):
    def guide(self, y):
        self.map_estimate("mu")
        group = self.group(match="theta")
        with self.plate("groups", len(y)):
            loc = pyro.param("loc", torch.zeros(len(y), 1))
            scale = pyro.param("scale", torch.ones(len(y), 1), constraint=constraints.positive)
            group.sample("thetas", dist.Normal(loc, scale).to_event(1))


program(
    "EasyGuide",
    hierarchy,
    (GROUPS,),
    lambda fit: np.testing.assert_allclose(fit.stats["params"]["scale"], 0.5**0.5, rtol=0.2),
    "svi",
    guide=Easy(hierarchy),
    learning_rate=0.02,
    steps=2000,
)


class Network(nn.Module):
    """A network in the likelihood, fitted by maximum likelihood under SVI."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x, y=None):
        with pyro.plate("n", len(x)), poutine.scale(scale=1.0):
            pyro.sample("y", dist.Normal(self.net(x)[:, 0], 0.2), obs=y)


CURVE = torch.linspace(-2.0, 2.0, 40)[:, None]
program(
    "a network in the likelihood",
    Network(),
    (CURVE, torch.sin(2 * CURVE[:, 0])),
    improves,
    "svi",
    engine="graph",
)
