"""Networks: their shapes and initialization, Bayesian versions, and Lipschitz constants."""

import textwrap

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import probdl
from probdl.nn import (
    MLP,
    ConvNet,
    TransposedConvNet,
    bayesian,
    initialize,
    lipschitz_bound,
    lipschitz_estimate,
)

# -- shapes ----------------------------------------------------------------------------------


def test_a_part_of_a_network_is_a_sequence_of_its_layers():
    net = probdl.nn.ConvNet((8, 8), channels=[4], sizes=[6, 1])
    assert [type(m).__name__.removeprefix("Pyro") for m in net[-3:]] == ["Linear", "ReLU", "Linear"]
    assert net[-1] is list(net)[-1]
    x = torch.rand(3, 8, 8)
    torch.testing.assert_close(net[-2:](net[:-2](x)), net(x))


def test_a_layer_from_n_to_m_has_n_times_m_weights():
    (weight, bias) = MLP([7, 5]).parameters()
    assert weight.numel() == 7 * 5
    assert bias.numel() == 5


def test_a_convolution_has_the_weights_of_its_filters():
    weight, bias = ConvNet((6, 6), channels=[16], kernel=2).parameters()
    assert weight.numel() == 16 * 4  # 16 filters of 2 × 2 × 1
    assert bias.numel() == 16


@pytest.mark.parametrize("shape", [(8, 12), (3, 8, 12)])
@pytest.mark.parametrize("kernel", [2, 3, 4])
def test_convolutions_downsample_and_transposed_ones_upsample(shape, kernel):
    net = ConvNet(shape, channels=(4, 6), sizes=(10, 5), kernel=kernel)
    assert net(torch.zeros(2, *shape)).shape == (2, 5)
    assert ConvNet(shape, channels=(4, 6), kernel=kernel).features == 6 * 2 * 3
    if kernel % 2 == 0:
        back = TransposedConvNet((5, 10), shape, channels=(4, 6), kernel=kernel)
        assert back(torch.zeros(2, 5)).shape == (2, *shape)
    else:
        with pytest.raises(probdl.SettingError, match="must be even"):
            TransposedConvNet((5, 10), shape, kernel=kernel)


def test_dropout_applies_in_training_only():
    torch.manual_seed(0)
    net = MLP([4, 100, 1], dropout=0.5)
    x = torch.ones(1, 4)
    assert len({net(x).item() for _ in range(5)}) > 1
    net.eval()
    assert len({net(x).item() for _ in range(5)}) == 1


def test_invalid_sizes_are_an_error():
    with pytest.raises(probdl.SettingError, match="integers"):
        MLP([3])
    with pytest.raises(probdl.SettingError, match="divisible by 4"):
        ConvNet((10, 10), channels=(4, 8))
    with pytest.raises(probdl.SettingError, match="'small_normal', 'xavier', 'he'"):
        MLP([3, 2], initialize="zero")


# -- initialization --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "deviation"),
    [("small_normal", 0.01), ("xavier", np.sqrt(2 / 700)), ("he", np.sqrt(2 / 400))],
)
def test_weights_have_the_variance_of_the_scheme(scheme, deviation):
    torch.manual_seed(0)
    layer = initialize(nn.Linear(400, 300), scheme, bias=0.05)
    count = 400 * 300
    assert float(layer.weight.detach().std()) == pytest.approx(
        deviation, rel=4 / np.sqrt(2 * count)
    )
    assert abs(float(layer.weight.detach().mean())) < 4 * deviation / np.sqrt(count)
    assert (layer.bias == 0.05).all()


def test_he_preserves_the_signal_through_many_layers_and_small_weights_do_not():
    x = torch.randn(500, 200, generator=torch.Generator().manual_seed(0))
    scale = {}
    for scheme in ("he", "xavier", "small_normal"):
        torch.manual_seed(1)
        scale[scheme] = float(MLP([200] * 21, initialize=scheme)(x).detach().square().mean())
    assert 0.1 < scale["he"] / 1.0 < 10
    assert scale["xavier"] < 1e-3 * scale["he"]  # half the variance, twenty times over
    assert scale["small_normal"] < 1e-20


# -- Bayesian networks -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def line():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(30, 3)))
    y = x @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) + 0.5 * torch.from_numpy(
        rng.normal(size=30)
    )
    return x, y


def linear(prior):
    net = bayesian(nn.Linear(3, 1), prior)

    def model(x, y=None):
        mean = net(x)[:, 0]
        with pyro.plate("obs", len(x)):
            pyro.sample("y", dist.Normal(mean, 0.5), obs=y)

    return model


def ridge(x, y, scale):
    """The posterior of weights and bias under N(0, scale²) and noise 0.5, in closed form."""
    design = np.c_[x, np.ones(len(x))]
    precision = design.T @ design / 0.25 + np.eye(4) / scale**2
    return np.linalg.solve(precision, design.T @ np.asarray(y) / 0.25), np.linalg.inv(precision)


def weights(fit):
    parts = [fit.draws[k].reshape(fit.num_chains * fit.num_draws, -1) for k in ("weight", "bias")]
    return np.concatenate(parts, 1)


def test_map_is_ridge_regression_and_mle_least_squares(line):
    fit = probdl.infer(linear(0.3), *line, method="map", seed=1)
    np.testing.assert_allclose(weights(fit)[0], ridge(*line, 0.3)[0], rtol=1e-6)
    fit = probdl.infer(linear(0.3), *line, method="mle", seed=1)
    np.testing.assert_allclose(weights(fit)[0], ridge(*line, 1e6)[0], rtol=1e-5)


@pytest.mark.parametrize(
    "method",
    [
        "laplace",
        probdl.NUTS(draws=1000, chains=2),
        probdl.SVI(guide="multivariate_normal"),
        "pathfinder",
    ],
    ids=["laplace", "nuts", "svi", "pathfinder"],
)
def test_every_method_finds_the_posterior_of_a_network(line, method):
    fit = probdl.infer(linear(1.0), *line, method=method, seed=1)
    mean, covariance = ridge(*line, 1.0)
    sd = np.sqrt(np.diag(covariance))
    np.testing.assert_array_less(np.abs(weights(fit).mean(0) - mean) / sd, 0.2)
    np.testing.assert_allclose(weights(fit).std(0) / sd, 1.0, atol=0.15)
    predicted = fit.predict(line[0][:5])["y"]
    assert predicted.shape[-1] == 5
    assert fit.log_predictive(*line).total > -60


def test_a_prior_narrows_the_gap_between_training_and_test_data():
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.normal(size=(60, 20)))
    y = x[:, 0] + torch.from_numpy(rng.normal(size=60))
    train, test = (x[:25], y[:25]), (x[25:], y[25:])
    gap = {}
    for prior in (0.2, 30.0):
        net = bayesian(MLP([20, 8, 1], activation=nn.Tanh), prior)

        def model(x, y=None, net=net):
            mean = net(x)[:, 0]
            with pyro.plate("obs", len(x)):
                pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

        fit = probdl.infer(model, *train, method=probdl.MAP(starts=1), seed=1)
        scores = [fit.log_predictive(*data).total / len(data[1]) for data in (train, test)]
        gap[prior] = scores[0] - scores[1]
    assert gap[0.2] < 1.0
    assert gap[30.0] > gap[0.2] + 0.3


def test_priors_of_other_kinds():
    module = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    net = bayesian(module, dist.Laplace(0.0, 2.0))
    trace = pyro.poutine.trace(net).get_trace(torch.zeros(1, 2))
    sites = {n: s["fn"] for n, s in trace.nodes.items() if s["type"] == "sample"}
    assert set(sites) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert isinstance(sites["0.weight"].base_dist, dist.Laplace)
    by_name = bayesian(module, lambda name, v: dist.Normal(torch.zeros_like(v), len(name)))
    assert by_name(torch.zeros(5, 2)).shape == (5, 1)
    assert all(isinstance(p, nn.Parameter) for p in module.parameters())  # it was copied
    with pytest.raises(probdl.SettingError, match=r"has shape \(\)"):
        bayesian(module, lambda name, v: dist.Normal(0.0, 1.0))
    with pytest.raises(probdl.SettingError, match="must be a positive number"):
        bayesian(module, -1.0)


# -- Lipschitz constants ---------------------------------------------------------------------


def test_the_bound_of_a_linear_map_is_its_largest_singular_value():
    torch.manual_seed(0)
    layer = nn.Linear(6, 4).double()
    exact = float(torch.linalg.svdvals(layer.weight.detach())[0])
    assert lipschitz_bound(layer) == pytest.approx(exact, rel=1e-10)
    x = torch.randn(200, 6, dtype=torch.float64)
    assert lipschitz_estimate(layer, x) == pytest.approx(exact, rel=1e-6)  # by the gradient


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.LeakyReLU, nn.GELU])
def test_estimates_are_below_bounds(activation):
    torch.manual_seed(1)
    net = MLP([3, 16, 16, 2], activation=activation)
    estimate, bound = lipschitz_estimate(net, torch.randn(300, 3)), lipschitz_bound(net)
    assert 0 < estimate <= bound


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_the_bound_of_a_convolution_is_above_its_norm(kind):
    torch.manual_seed(0)
    layer = kind(2, 3, 3, stride=2, padding=1, bias=False)
    x = torch.eye(2 * 64).reshape(-1, 2, 8, 8)
    matrix = layer(x).reshape(len(x), -1).detach()
    norm = float(torch.linalg.matrix_norm(matrix, 2))
    assert norm <= lipschitz_bound(layer) * (1 + 1e-6)
    assert lipschitz_bound(layer) < 4 * norm


def test_the_absolute_value_has_the_constant_one():
    x = torch.arange(-200, 201) / 100
    assert x[200] == 0.0  # where it has no derivative
    assert lipschitz_estimate(torch.abs, x) == 1.0
    assert lipschitz_estimate(lambda t: t**2, x) == pytest.approx(4.0, rel=0.01)


def test_unknown_layers_are_named_in_the_error():
    with pytest.raises(probdl.ModelError, match="Bilinear"):
        lipschitz_bound(nn.Sequential(nn.Bilinear(2, 2, 2)))
    with pytest.raises(probdl.SettingError, match="at least two"):
        lipschitz_estimate(torch.abs, torch.zeros(1))


@pytest.mark.parametrize("method", ["nuts", "map", "svi", "mle"])
@pytest.mark.parametrize("with_y", [False, True])
def test_a_network_without_a_likelihood_is_explained(method, with_y):
    x, y = torch.linspace(-1, 1, 10)[:, None], torch.zeros(10)
    networks = [probdl.nn.bayesian(MLP([1, 4, 1])), MLP([1, 4, 1]), nn.Linear(1, 1)]
    for network in networks:
        with pytest.raises(probdl.ModelError, match=r"(?s)without a likelihood.*obs=y") as error:
            probdl.infer(network, *((x, y) if with_y else (x,)), method=method, seed=1)
        assert type(network).__name__ in str(error.value)
    # The example of the message runs.
    lines = str(error.value).split("\n\n", 1)[1].replace("(...)", "(probdl.nn.MLP([1, 4, 1]))")
    names = {"probdl": probdl, "pyro": pyro, "dist": dist, "x": x, "y": y}
    example = textwrap.dedent(lines).replace(
        "infer(model, x, y)", "infer(model, x, y, method='map')"
    )
    exec(example, names)
    assert names["fit"].predict(x)["y"].shape == (1, 1, 10)


def test_a_module_with_a_likelihood_may_be_made_bayesian():
    class Regression(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(1, 1)

        def forward(self, x, y=None):
            mean = self.linear(x)[:, 0]
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(mean, 0.1), obs=y)

    x = torch.linspace(-1, 1, 40)[:, None]
    model = probdl.nn.bayesian(Regression())
    fit = probdl.infer(model, x, 3 * x[:, 0], method="map", seed=1)
    assert fit.draws["linear.weight"].item() == pytest.approx(3.0, abs=0.02)


def test_a_bayesian_network_is_shown_by_layer():
    net = probdl.nn.bayesian(probdl.nn.MLP([1, 30, 1]))

    def forward(self, x, y=None):
        mean = self.net(x)[:, 0]
        with pyro.plate("n", len(x)):
            pyro.sample("y", dist.Normal(mean, 0.3), obs=y)

    model = type("Model", (torch.nn.Module,), {"forward": forward})()
    model.net = net
    x = torch.linspace(-1.0, 1.0, 10)[:, None]
    method = probdl.NUTS(chains=1, warmup=50, draws=50)
    with pytest.warns(probdl.FindingWarning):
        fit = probdl.infer(model, x, torch.sin(3 * x[:, 0]), method=method, seed=1)
    lines = str(fit).splitlines()
    assert [line.split()[0] for line in lines[-4:]] == [
        "2.bias[0]",
        "0.weight",
        "0.bias",
        "2.weight",
    ]
    assert lines[-3].endswith("(30, 1)")
    assert "NaN" not in "".join(lines[:6])
    assert "more rows" not in str(fit)
    assert len(fit.summary()) == 91
