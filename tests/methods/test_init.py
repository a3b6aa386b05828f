"""Starting points of all methods: values that the user gives, and models without random ones."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import probdl
from probdl.errors import ModelError, SettingError
from probdl.model.density import LogDensity

pytestmark = pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
RNG = np.random.default_rng(1)
SHORT = {"draws": 200, "warmup": 300}


def checks(fit):
    return {f.check for f in fit.diagnose()}


def uniform(y):
    theta = pyro.sample("theta", dist.Pareto(10.0, 1.0))
    with pyro.plate("obs", len(y)):
        pyro.sample("y", dist.Uniform(0.0, theta), obs=y)


WIDE = np.append(RNG.uniform(0, 5000, 40), 5000.0)


@pytest.mark.parametrize("method", ["nuts", "metropolis"])
def test_a_posterior_far_from_any_random_start(method):
    fit = probdl.infer(uniform, WIDE, method=method, seed=1)
    # theta ~ Pareto(5000, 42): P(theta < 5000 * 1.0166) = 1/2
    assert np.median(fit.draws["theta"]) == pytest.approx(5000 * 2 ** (1 / 42), rel=0.005)


@pytest.mark.parametrize("method", ["mle", "map"])
def test_the_maximum_at_the_largest_observation(method):
    fit = probdl.infer(uniform, WIDE, method=method, seed=1)
    assert fit.draws["theta"].item() == pytest.approx(5000.0, rel=1e-6)
    assert "boundary" in checks(fit)


def test_a_search_moves_several_sites_and_coordinates():
    def model(y, x):
        low = pyro.sample("low", dist.Normal(0.0, 1e3))
        with pyro.plate("group", 3):
            width = pyro.sample("width", dist.HalfNormal(1e4))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Uniform(low, low + width[x], validate_args=False), obs=y)

    y = np.array([-300.0, 10.0, 700.0, -250.0])
    density = LogDensity.from_model(model, (y, np.array([0, 1, 2, 0])))
    z = density.initial(torch.Generator().manual_seed(1))
    assert torch.isfinite(density(z))


@pytest.mark.parametrize("scale", [1e-12, 1e20])
@pytest.mark.parametrize("method", ["nuts", "mle", "map", "laplace", "pathfinder"])
def test_a_model_in_other_units(scale, method):
    y = scale * RNG.normal(3.0, 1.0, 50)

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0 * scale))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Normal(mu, scale), obs=y)

    fit = probdl.infer(model, y, method=method, seed=2)
    assert fit.draws["mu"].mean() / scale == pytest.approx(y.mean() / scale, abs=0.05)
    if method in ("nuts", "laplace", "pathfinder"):
        assert fit.draws["mu"].std() / scale == pytest.approx(50**-0.5, rel=0.1)
    assert not checks(fit) & {"no_maximum", "flat", "saddle", "not_converged", "stuck_chain"}


def two_modes(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 20.0))
    with pyro.plate("obs", len(y)):
        pyro.sample("y", dist.Normal(mu.abs(), 1.0), obs=y)


METHODS = {
    "nuts": probdl.NUTS,
    "hmc": probdl.HMC,
    "metropolis": probdl.Metropolis,
    "map": probdl.MAP,
    "mle": probdl.MLE,
    "laplace": probdl.Laplace,
    "pathfinder": probdl.Pathfinder,
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_the_given_start_decides_between_equal_modes(name, side):
    y = RNG.normal(10.0, 1.0, 20)
    settings = SHORT if name in ("nuts", "hmc", "metropolis") else {}
    method = METHODS[name](init={"mu": side * 9.0}, **settings)
    fit = probdl.infer(two_modes, y, method=method, seed=3)
    assert (np.sign(fit.draws["mu"]) == side).all()


def test_given_starts_reach_the_sampler_as_they_are():
    method = probdl.NUTS(init={"x": [0.5, -0.5]}, warmup=1, draws=1, chains=2)
    density = LogDensity.from_model(
        lambda: pyro.sample("x", dist.Normal(0, 1).expand([2]).to_event(1))
    )
    z = density.starting_at(method.init).initial(torch.Generator().manual_seed(1))
    assert z.tolist() == [0.5, -0.5]


@pytest.mark.parametrize(
    ("init", "text"),
    [
        ({"sgima": 1.0}, "sigma"),
        ({"sigma": -1.0}, "support"),
        ({"sigma": 0.0}, "edge"),
        ({"sigma": float("nan")}, "finite"),
        ({"mu": [1.0, 2.0]}, r"shape \(2,\)"),
        ({"y": 1.0}, "not a site that is inferred"),
    ],
)
def test_a_start_that_does_not_fit_the_sites(init, text):
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        pyro.sample("y", dist.Normal(mu, sigma), obs=y)

    for kind in (probdl.NUTS, probdl.MAP):
        with pytest.raises(SettingError, match=text):
            probdl.infer(model, torch.tensor(0.0), method=kind(init=init), seed=1)


@pytest.mark.parametrize("kind", METHODS.values())
def test_a_start_that_is_no_mapping(kind):
    for bad in (3, [1.0], {"x": "one"}, {1: 2.0}, "nowhere"):
        with pytest.raises(SettingError, match="init"):
            kind(init=bad)


def test_a_given_start_with_an_infinite_density_is_named():
    with pytest.raises(ModelError, match="theta"):
        probdl.infer(uniform, WIDE, method=probdl.MAP(init={"theta": 20.0}), seed=1)


def test_settings_with_a_start_survive_saving(tmp_path):
    y = RNG.normal(10.0, 1.0, 20)
    method = probdl.MAP(init={"mu": torch.tensor(-9.0)})
    fit = probdl.infer(two_modes, y, method=method, seed=3)
    fit.save(tmp_path / "fit")
    assert probdl.load(tmp_path / "fit", model=two_modes).method == method
