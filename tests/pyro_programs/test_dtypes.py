"""Programs that mix float32 and float64: all of them compute in one dtype."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.contrib.timeseries import IndependentMaternGP
from pyro.distributions import transforms
from pyro.nn import PyroModule, PyroSample
from torch import nn

import probdl

X = torch.linspace(-1.0, 1.0, 40)
Y = torch.randn(40, generator=torch.Generator().manual_seed(0))


def with_coefficient(predictor):
    def model(x, y):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("n", len(x)):
            pyro.sample("y", dist.Normal(a * predictor(x), 1.0), obs=y)

    return model


weights = torch.arange(40.0) / 40  # float32, in the closure


@pytest.mark.parametrize(
    "predictor",
    [
        lambda x: (x > 0).float(),
        lambda x: (x > 0).to(torch.float32),
        lambda x: (x > 0).type(torch.float32),
        lambda x: (x > 0).type(torch.FloatTensor),
        lambda x: x.float(),
        lambda x: x.half().double() * 0 + x,
        lambda x: x * torch.ones(40, dtype=torch.float32),
        lambda x: x * torch.tensor(weights.numpy()),
        lambda x: x * torch.from_numpy(weights.numpy()),
        lambda x: torch.diag(weights) @ x,
        lambda x: torch.stack([x, weights]).sum(0),
        lambda x: torch.zeros(40, dtype=torch.float32).index_put((torch.arange(40),), x),
        lambda x: x.type_as(weights),
        lambda x: nn.functional.linear(x, torch.eye(40, dtype=torch.float32)),
    ],
)
def test_float32_in_a_model_stays_on_native_code(predictor):
    fit = probdl.infer(with_coefficient(predictor), X, Y, seed=1)
    assert fit.stats["engine"] == "native"
    w = predictor(X).double()
    precision = 1 + float((w**2).sum())
    mean, sd = float((w * Y).sum()) / precision, precision**-0.5
    assert abs(fit.draws["a"].mean() - mean) < 5 * sd / 1000**0.5
    assert abs(fit.draws["a"].std() - sd) < 0.1 * sd


def test_values_are_not_rounded_to_float32():
    third = torch.tensor(1.0, dtype=torch.float64) / 3

    def model(y):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(a.float(), 1.0), obs=y)

    estimate = probdl.infer(model, 2 * third, method="map", seed=1).draws["a"].item()
    assert abs(estimate - 1 / 3) < 1e-9


class Regression(PyroModule):
    """A model whose only weights have priors, made in float32."""

    def __init__(self):
        super().__init__()
        self.w = PyroSample(dist.Normal(torch.zeros(2), 1.0).to_event(1))

    def forward(self, x, y=None):
        mean = x @ self.w
        with pyro.plate("n", len(x)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


@pytest.mark.parametrize("guide", ["normal", "multivariate_normal", "delta"])
@pytest.mark.parametrize("make", [Regression, lambda: Regression().double()])
def test_a_module_with_priors_only(make, guide):
    x = torch.stack([X, torch.ones(40)], 1)
    precision = x.T @ x + torch.eye(2)
    exact = torch.linalg.solve(precision, x.T @ Y)
    method = probdl.SVI(guide=guide, steps=2000, learning_rate=0.02)
    fit = probdl.infer(make(), x, Y, method=method, seed=1)
    mean = torch.from_numpy(fit.draws["w"]).mean((0, 1))
    assert (mean - exact).abs().max() < 0.3 * precision.diag().rsqrt().max()


def test_a_network_in_the_guide_alone():
    net = nn.Linear(4, 2)

    def model(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0).expand([4]).to_event(1), obs=y)

    def guide(y):
        pyro.module("net", net)
        out = net(y)
        pyro.sample("z", dist.Normal(out[0], out[1].exp()))

    before = net.weight.clone()
    method = probdl.SVI(guide=guide, steps=2000, learning_rate=0.02)
    fit = probdl.infer(model, torch.ones(4), method=method, seed=1)
    assert abs(fit.draws["z"].mean() - 0.8) < 0.15  # N(4/5, 1/5)
    assert abs(fit.draws["z"].std() - 0.2**0.5) < 0.07
    assert torch.equal(net.weight, before)
    assert net.weight.dtype == torch.float32


def flow_guide(transform):
    def guide(y):
        pyro.module("flow", transform)
        base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        pyro.sample("z", dist.TransformedDistribution(base, [transform]))

    return guide


def sum_of_two(y):
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(z.sum(), 1.0), obs=y)


def test_a_flow_in_the_guide():
    guide = flow_guide(transforms.affine_autoregressive(2))
    method = probdl.SVI(guide=guide, steps=2000, learning_rate=0.02)
    fit = probdl.infer(sum_of_two, torch.ones(5), method=method, seed=1)
    # The posterior of each is N(5/11, 6/11), and their correlation is -5/6.
    assert (torch.from_numpy(fit.draws["z"]).mean((0, 1)) - 5 / 11).abs().max() < 0.25
    assert abs(fit.draws["z"].sum(-1).std() - (2 / 11) ** 0.5) < 0.1
    assert abs(fit.log_evidence().total - exact_evidence(torch.ones(5))) < 0.1


def exact_evidence(y):
    covariance = torch.eye(len(y)) + 2
    return float(dist.MultivariateNormal(torch.zeros(len(y)), covariance).log_prob(y))


def test_a_flow_whose_shapes_depend_on_the_data_is_trained():
    torch.manual_seed(0)
    guide = flow_guide(transforms.Spline(2))
    method = probdl.SVI(guide=guide, steps=150, draws=100, learning_rate=0.05)
    fit = probdl.infer(sum_of_two, torch.ones(5), method=method, seed=1)
    assert fit.stats["engine"] == "eager"
    first, last = fit.stats["elbo"][:30], fit.stats["elbo"][-30:]
    error = ((first.var() + last.var()) / 30) ** 0.5
    assert last.mean() - first.mean() > 3 * error


def test_a_flow_in_the_likelihood():
    flow = transforms.spline_coupling(2)

    def model(y):
        pyro.module("flow", flow)
        base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.TransformedDistribution(base, [flow]), obs=y)

    y = torch.randn(30, 2, generator=torch.Generator().manual_seed(1))
    fit = probdl.infer(model, y, method=probdl.SVI(steps=30), seed=1)
    assert fit.stats["elbo"][-1] > fit.stats["elbo"][0]


def test_buffers_of_a_network_in_a_closure():
    gp = IndependentMaternGP(nu=1.5, obs_dim=2)

    def model(y):
        pyro.module("gp", gp)
        pyro.factor("y", gp.log_prob(y).sum())

    y = torch.randn(20, 2, generator=torch.Generator().manual_seed(2))
    start = float(gp.log_prob(y).sum())
    fit = probdl.infer(model, y, method="mle", seed=1)
    assert fit.stats["log_likelihood"] > start
