"""Posteriors of shapes that mislead: two modes, heavy tails, an unbounded density, a funnel."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import probdl
from probdl.compile import choose
from probdl.methods.approximate import comparison
from probdl.methods.approximate.pathfinder import Normal
from probdl.methods.approximate.reference import find_reference
from probdl.methods.mcmc import chains
from probdl.methods.variational import svi
from probdl.model.density import LogDensity
from probdl.util.clock import TimeUp

pytestmark = pytest.mark.filterwarnings("ignore::probdl.FindingWarning")

METHODS_WITH_DRAWS = ["laplace", "pathfinder", "metropolis", "nuts", "svi"]


def checks(fit):
    return {finding.check for finding in fit.diagnose()}


def infer(model, *data, method, seed=1):
    return probdl.infer(model, *data, method=method, seed=seed, progress=False)


# -- several modes --------------------------------------------------------------------------


def square(y):
    """The posterior of x has modes at 4 and -4, of equal probability."""
    x = pyro.sample("x", dist.Normal(0.0, 10.0))
    pyro.sample("y", dist.Normal(x**2, 2.0), obs=y)


SIXTEEN = torch.tensor(16.0)


@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("mle", "not_identified"),
        ("map", "not_identified"),
        ("laplace", "not_identified"),
        ("nuts", "multimodal"),
        ("hmc", "multimodal"),
        ("metropolis", "multimodal"),
        ("svi", "multimodal"),
    ],
)
def test_two_equal_modes_are_reported(method, told, seed):
    settings = probdl.HMC(draws=200, warmup=250) if method == "hmc" else method
    assert told in checks(infer(square, SIXTEEN, method=settings, seed=seed))


def mixture(*parts):
    """A density with modes of given weights, means and standard deviations."""

    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1000.0))
        terms = [math.log(w / sd) - 0.5 * ((x - m) / sd) ** 2 for w, m, sd in parts]
        total = terms[0]
        for term in terms[1:]:
            total = torch.logaddexp(total, term)
        pyro.factor("density", total)

    return model


@pytest.mark.parametrize("method", ["laplace", "pathfinder", "nuts", "svi"])
@pytest.mark.parametrize(
    "parts",
    [
        [(0.2, -1.5, 0.1), (0.8, 3.0, 1.0)],
        [(0.4, -2.0, 0.25), (0.35, 0.0, 0.25), (0.25, 2.5, 0.25)],
    ],
)
def test_modes_of_any_place_and_width_are_reported_or_right(method, parts):
    mean = sum(w * m for w, m, _ in parts)
    variance = sum(w * (sd**2 + m**2) for w, m, sd in parts) - mean**2
    for seed in range(1, 4):
        fit = infer(mixture(*parts), method=method, seed=seed)
        x = fit.draws["x"]
        off = abs(x.mean() - mean) > 0.15 * variance**0.5
        off |= abs(math.log(x.std() / variance**0.5)) > 0.2
        assert not off or checks(fit) & {"multimodal", "rhat"}


@pytest.mark.parametrize("paths", [2, 3, 4, 5])
def test_pathfinder_gives_each_mode_its_probability_whatever_the_number_of_paths(paths):
    fit = infer(square, SIXTEEN, method=probdl.Pathfinder(paths=paths, draws=4000))
    share = float((fit.draws["x"] > 0).mean())
    assert abs(share - 0.5) < 4 * 0.5 / math.sqrt(4000)
    # Each of the two regions holds half of the probability. By quadrature:
    x = np.linspace(-6, 6, 20001)
    density = np.exp(-((x**2 - 16) ** 2) / 8 - x**2 / 200) / (2 * math.pi * 20)
    exact = math.log(density.sum() * (x[1] - x[0]))
    assert abs(fit.stats["log_evidence"] - exact) < 0.05


def test_a_map_estimate_is_at_the_higher_mode():
    def model():
        pyro.sample("x", dist.Normal(3.0, 10.0))
        x = pyro.sample("z", dist.Normal(3.0, 10.0))
        pyro.sample("y", dist.Normal(x**2, 2.0), obs=SIXTEEN)

    for seed in range(1, 9):
        assert infer(model, method="map", seed=seed).draws["z"].item() > 3


def test_one_mode_is_not_taken_for_two():
    def model(y):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 2.0), obs=y)

    for method in [*METHODS_WITH_DRAWS, "map"]:
        assert not checks(infer(model, SIXTEEN / 8, method=method))


def test_the_mirror_image_of_a_start_is_its_negative():
    density = LogDensity.from_model(square, (SIXTEEN,))
    a, b = (
        density.initial(torch.Generator().manual_seed(3), mirror=mirror) for mirror in (False, True)
    )
    assert torch.equal(a, -b)


def test_the_density_of_a_normal_approximation_is_that_of_its_draws():
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(5, 2)))
    root = np.array([[0.5, 0.0], [1.0, 2.0]])
    normal = Normal(np.zeros(5), rng.normal(size=5), np.exp(rng.normal(size=5)), basis, root)
    z = np.empty((7, 5))
    log_q = normal.draw(z, rng)
    np.testing.assert_allclose(normal.log_density(z), log_q)
    exact = dist.MultivariateNormal(
        torch.from_numpy(normal.mean), torch.from_numpy(normal.covariance)
    )
    np.testing.assert_allclose(normal.log_density(z), exact.log_prob(torch.from_numpy(z)))


def test_the_turns_of_an_angle_are_no_modes():
    y = torch.tensor([2.0, 2.5, 1.8, 2.2])

    def model():
        angle = pyro.sample("angle", dist.VonMises(0.0, 0.5))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.VonMises(angle, 4.0), obs=y)

    grid = torch.linspace(-math.pi, math.pi, 20001, dtype=torch.float64)[:-1]
    prior = dist.VonMises(torch.tensor(0.0).double(), 0.5).log_prob(grid)
    terms = dist.VonMises(grid[:, None], 4.0).log_prob(y.double()).sum(1)
    exact = float((prior + terms).logsumexp(0) + math.log(2 * math.pi / len(grid)))
    for seed in range(1, 4):
        fit = infer(model, method="pathfinder", seed=seed)
        assert abs(fit.stats["log_evidence"] - exact) < 0.05
        assert "multimodal" not in checks(fit)


# -- tails ----------------------------------------------------------------------------------


def test_an_angle_by_metropolis():
    for seed in range(1, 4):
        fit = infer(
            lambda: pyro.sample("x", dist.VonMises(3.0, 2.0)), method="metropolis", seed=seed
        )
        sine, cosine = np.sin(fit.draws["x"]).mean(), np.cos(fit.draws["x"]).mean()
        assert abs(math.atan2(sine, cosine) - 3.0) < 0.1
        assert abs(math.hypot(sine, cosine) - 0.6978) < 0.03  # I1(2) / I0(2)
        assert not checks(fit)


def test_the_same_angle_is_one_optimum():
    fit = infer(lambda: pyro.sample("x", dist.VonMises(3.0, 2.0)), method="map")
    assert "not_identified" not in checks(fit)


def prior_only(prior):
    return lambda: pyro.sample("x", prior)


@pytest.mark.parametrize("method", METHODS_WITH_DRAWS)
def test_a_mean_that_does_not_exist_is_reported_by_every_method(method):
    for seed in range(1, 4):
        fit = infer(prior_only(dist.Cauchy(0.0, 1.0)), method=method, seed=seed)
        (finding,) = [f for f in fit.diagnose() if f.check == "heavy_tail"]
        assert finding.sites == ("x",)


@pytest.mark.parametrize(
    ("prior", "lacks"),
    [
        (dist.Cauchy(0.0, 1.0), "mean"),
        (dist.HalfCauchy(3.0), "mean"),
        (dist.StudentT(2.0, 1e3, 1e3), "variance"),
        (dist.InverseGamma(1.5, 2.0), "variance"),
        (dist.InverseGamma(0.8, 2.0), "mean"),
        (dist.Pareto(1e-3, 1.5), "variance"),
        (dist.StudentT(3.0, 0.0, 1.0), None),
        (dist.InverseGamma(3.0, 2.0), None),
        (dist.LogNormal(0.0, 2.0), None),
        (dist.Gamma(0.1, 1.0), None),
    ],
)
def test_which_moments_exist(prior, lacks):
    fit = infer(prior_only(prior), method=probdl.Metropolis(draws=300, warmup=300))
    told = [f.message for f in fit.diagnose() if "falls only like" in f.message]
    assert [f"has no {lacks}" in message for message in told] == ([] if lacks is None else [True])


def test_every_site_is_looked_at():
    def model():
        pyro.sample("a", dist.StudentT(4.0, 0.0, 1.0).expand([120]).to_event(1))
        pyro.sample("b", dist.Cauchy(0.0, 1.0))

    fit = infer(model, method=probdl.NUTS(draws=50, warmup=50))
    (finding,) = [f for f in fit.diagnose() if f.check == "heavy_tail"]
    assert finding.sites == ("b",)


def test_draws_that_are_too_wide_do_not_excuse_themselves():
    for seed in range(1, 4):
        fit = infer(
            prior_only(dist.Exponential(torch.tensor(1.0).double())), method="svi", seed=seed
        )
        assert fit.draws["x"].std() < 1.2 or "biased_moments" in checks(fit)


def test_separated_classes_with_a_heavy_prior_have_no_mean():
    x, y = torch.arange(-5.0, 6.0), (torch.arange(-5.0, 6.0) > 0).float()
    keep = x != 0

    def model(x, y, prior):
        b = pyro.sample("b", prior)
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=b * x), obs=y)

    for prior, heavy in [(dist.Cauchy(0.0, 2.5), True), (dist.Normal(0.0, 2.5), False)]:
        fit = infer(model, x[keep], y[keep], prior, method="nuts")
        assert ("heavy_tail" in checks(fit)) is heavy


def test_a_heavy_prior_with_data_is_no_alarm():
    torch.manual_seed(0)
    y = torch.randn(30) * 2 + 5

    def model(y):
        mu = pyro.sample("mu", dist.Cauchy(0.0, 10.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        raw = pyro.sample("raw", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        group = torch.arange(len(y)) % 3
        sd = pyro.sample("sd", dist.HalfCauchy(5.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mu + tau * raw[group], sd), obs=y)

    assert "heavy_tail" not in checks(infer(model, y, method="nuts"))


# -- densities without a maximum --------------------------------------------------------------


Y = torch.tensor([-20.0, -12.0, -8.0, -3.0, 2.0, 7.0, 15.0, 25.0], dtype=torch.float64)


def hierarchy(scale, of_group=dist.Normal):
    """Group values whose scale is a function of a site ``s``."""

    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = scale()
        with pyro.plate("groups", len(Y)):
            theta = pyro.sample("theta", of_group(mu, tau))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=Y)

    return model


def s(prior):
    return pyro.sample("s", prior)


def student(mu, tau):
    return dist.StudentT(1.5, mu, tau)


UNBOUNDED = {
    "half_cauchy": hierarchy(lambda: s(dist.HalfCauchy(5.0))),
    "half_normal": hierarchy(lambda: s(dist.HalfNormal(5.0))),
    "gamma": hierarchy(lambda: s(dist.Gamma(2.0, 0.1))),
    "uniform": hierarchy(lambda: s(dist.Uniform(0.0, 50.0))),
    "two_scales": hierarchy(lambda: s(dist.HalfCauchy(5.0).expand([2]).to_event(1)).repeat(4)),
    "variance": hierarchy(lambda: s(dist.HalfCauchy(100.0)).sqrt()),
    "log_scale": hierarchy(lambda: s(dist.StudentT(3.0, 0.0, 2.0)).exp()),
    "of_cauchy": hierarchy(lambda: s(dist.HalfCauchy(5.0)), dist.Cauchy),
    "of_student": hierarchy(lambda: s(dist.HalfCauchy(5.0)), student),
}
BOUNDED = {
    "inverse_gamma": hierarchy(lambda: s(dist.InverseGamma(2.0, 5.0))),
    "log_normal": hierarchy(lambda: s(dist.LogNormal(2.0, 2.0))),
    "gamma_precision": hierarchy(lambda: s(dist.Gamma(1.0, 0.01)) ** -0.5),
    "positive": hierarchy(lambda: s(dist.HalfNormal(5.0)) + 0.5),
}


@pytest.mark.parametrize("name", UNBOUNDED)
def test_the_map_of_a_hierarchy_is_a_local_one(name):
    fit = infer(UNBOUNDED[name], method="map")
    (finding,) = [f for f in fit.diagnose() if f.check == "no_maximum"]
    assert finding.sites == ("s", "theta")


@pytest.mark.parametrize("name", BOUNDED)
def test_a_hierarchy_whose_scale_cannot_be_zero_has_a_map_estimate(name):
    assert "no_maximum" not in checks(infer(BOUNDED[name], method="map"))


def test_the_scale_of_data_does_not_collapse():
    def model(y):
        sd = pyro.sample("sd", dist.HalfNormal(3.0))
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        raw = pyro.sample("raw", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mu + sd * raw, sd), obs=y)

    fit = infer(model, torch.tensor([1.0, 2.0, 4.0, 3.5]), method="map")
    assert "no_maximum" not in checks(fit)


# -- the reference of an approximation --------------------------------------------------------


def found_reference(model, sd):
    density = LogDensity.from_model(model)
    z = sd * np.random.default_rng(0).normal(size=(1000, density.dim))
    evaluator, _ = choose(density, "native", 1)
    return find_reference(density, evaluator, z, 1)


@pytest.mark.parametrize("sd", [0.3, 1.0, 3.0])
def test_the_reference_is_right_from_any_start(sd):
    two, four = torch.tensor([2.0, 4.0], dtype=torch.float64)
    reference = found_reference(prior_only(dist.Gamma(two, four)), sd)
    w = np.exp(reference.log_weights)
    x = reference.draws["x"]
    mean = w @ x
    error = math.sqrt(w**2 @ (x - mean) ** 2)
    assert error < 0.01 * 0.35
    assert abs(mean - 0.5) < 4 * error
    assert abs(w @ (x - mean) ** 2 - 2 / 16) < 0.005


def funnel():
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    pyro.sample("x", dist.Normal(0.0, (v / 2).exp()))


def banana():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("z", dist.Normal(x**2, 0.1))


def cauchy():
    pyro.sample("x", dist.Cauchy(0.0, 1.0))


@pytest.mark.parametrize("model", [funnel, banana, cauchy])
def test_there_is_no_reference_where_it_would_be_wrong(model):
    for sd in (0.3, 1.0, 3.0):
        assert found_reference(model, sd) is None


@pytest.mark.parametrize("model", [funnel, banana])
@pytest.mark.parametrize("method", ["laplace", "pathfinder", "svi"])
def test_a_posterior_far_from_normal_is_reported(model, method):
    for seed in range(1, 4):
        told = checks(infer(model, method=method, seed=seed))
        assert told & {"pareto_k", "weights", "biased_moments"}


def test_a_finding_about_moments_concerns_all_sites():
    def model():
        pyro.sample("x", dist.Gamma(1.5, 1.0))
        pyro.sample("z", dist.Normal(0.0, 1.0))

    (finding,) = infer(model, method="laplace").diagnose()
    assert (finding.check, finding.sites) == ("biased_moments", ())
    assert "'x'" in finding.message


def test_a_guide_that_is_right_has_no_finding_although_its_tail_is_light():
    # k-hat of the weights is above 0.5, but the mean and standard deviation are right.
    x = torch.linspace(-2, 2, 40)
    y = (
        torch.rand(40, generator=torch.Generator().manual_seed(4)) < torch.sigmoid(1.5 * x)
    ).float()

    def model(x, y):
        b = pyro.sample("b", dist.Normal(0.0, 3.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=b * x), obs=y)

    for seed in range(1, 4):
        assert not checks(infer(model, x, y, method="svi", seed=seed))


@pytest.mark.parametrize("method", ["map", "mle"])
def test_an_estimate_next_to_the_edge_is_reported(method):
    # Normal quantiles have lighter tails than a sample: the stable law closest to them has index 2.
    y = dist.Normal(3.0, 1.5).icdf((torch.arange(100) + 0.5) / 100)

    def model(y):
        index = pyro.sample("index", dist.Uniform(1.0, 2.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.StableWithLogProb(index, 0.0, scale, loc), obs=y)

    fit = infer(model, y, method=method)
    assert abs(fit.draws["index"].item() - 2) < 1e-5
    (finding,) = [f for f in fit.diagnose() if f.check == "boundary"]
    assert finding.sites == ("index",)


@pytest.mark.parametrize("y", [1e-12, 1e12])
def test_a_small_or_large_scale_is_not_at_the_edge(y):
    def model():
        rate = pyro.sample("rate", dist.Gamma(2.0, y))
        with pyro.plate("rows", 20):
            pyro.sample("y", dist.Exponential(rate), obs=torch.full((20,), y, dtype=torch.float64))

    for method in ("map", "mle"):
        assert "boundary" not in checks(infer(model, method=method))


@pytest.mark.parametrize(
    ("stop", "told"), [(KeyboardInterrupt(), "interrupted"), (TimeUp(1.0), "time_limit")]
)
@pytest.mark.parametrize("method", ["laplace", "pathfinder", "svi"])
def test_an_interrupted_comparison_leaves_the_draws(method, stop, told, monkeypatch):
    def interrupt(*args):
        raise stop

    monkeypatch.setattr(comparison, "find_modes", interrupt)
    fit = infer(prior_only(dist.Normal(0.0, 1.0)), method=method)
    assert fit.draws["x"].shape == (1, 1000)
    assert told in checks(fit)


@pytest.mark.parametrize("method", ["nuts", "metropolis"])
def test_interrupted_checks_of_chains_leave_the_draws(method, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(chains, "check_covered", interrupt)
    fit = infer(prior_only(dist.Normal(0.0, 1.0)), method=method)
    assert fit.draws["x"].shape == (4, 1000)
    assert "interrupted" in checks(fit)


def test_an_interrupted_weighting_leaves_the_guide(monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(svi, "draw_weighted", interrupt)
    fit = infer(prior_only(dist.Normal(0.0, 1.0)), method="svi")
    assert fit.draws["x"].shape == (1, 1000)
    assert "interrupted" in checks(fit)
