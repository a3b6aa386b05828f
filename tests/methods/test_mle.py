"""Maximum likelihood and MAP against closed forms and statsmodels."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import statsmodels.api as sm
import torch
from scipy import stats

import probdl
from probdl.models import beta_binomial, eight_schools, linear_regression, logistic_regression
from probdl.util.clock import TimeUp

RNG = np.random.default_rng(20)
Y = RNG.normal(3.0, 2.0, size=40)
COUNTS = RNG.poisson(4.0, size=40).astype(float)
TIMES = RNG.exponential(0.25, size=40)
X = RNG.normal(size=(200, 3))
NOISE = RNG.normal(size=200)
CLASSES = (RNG.random(200) < 1 / (1 + np.exp(-X @ [1.0, -0.5, 0.0] - 0.3))).astype(float)


def normal(y):
    mu = pyro.sample("mu", dist.Normal(100.0, 0.1))  # a prior that must be ignored
    sigma = pyro.sample("sigma", dist.HalfNormal(0.01))
    with pyro.plate("obs", len(y)):
        pyro.sample("y", dist.Normal(mu, sigma), obs=y)


def poisson(y):
    rate = pyro.param("rate", torch.tensor(1.0), constraint=dist.constraints.positive)
    with pyro.plate("obs", len(y)):
        pyro.sample("y", dist.Poisson(rate), obs=y)


def exponential(y):
    rate = pyro.sample("rate", dist.LogNormal(0.0, 0.1))
    with pyro.plate("obs", len(y)):
        pyro.sample("y", dist.Exponential(rate), obs=y)


n, s = len(Y), Y.std()
CLOSED_FORMS = {
    "normal": (normal, Y, {"mu": (Y.mean(), s / n**0.5), "sigma": (s, s / (2 * n) ** 0.5)}),
    "poisson": (poisson, COUNTS, {"rate": (COUNTS.mean(), (COUNTS.mean() / n) ** 0.5)}),
    "exponential": (exponential, TIMES, {"rate": (1 / TIMES.mean(), 1 / TIMES.mean() / n**0.5)}),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_the_estimate_and_its_standard_error_equal_the_closed_form(name):
    model, y, expected = CLOSED_FORMS[name]
    fit = probdl.infer(model, y, method="mle", seed=1)
    for site, (estimate, error) in expected.items():
        assert fit.draws[site].shape == (1, 1)
        assert fit.draws[site].item() == pytest.approx(estimate, abs=1e-6)
        assert fit.stats["standard_error"][site] == pytest.approx(error, abs=1e-4)
        width = stats.norm.ppf(0.975) * error
        assert fit.stats["ci_low"][site] == pytest.approx(estimate - width, abs=1e-3)
        assert fit.stats["ci_high"][site] == pytest.approx(estimate + width, abs=1e-3)
    assert not fit.diagnose()


def test_the_likelihood_and_the_cross_entropy_at_the_maximum():
    fit = probdl.infer(normal, Y, method="mle", seed=1)
    expected = stats.norm(Y.mean(), Y.std()).logpdf(Y).sum()
    assert fit.stats["log_likelihood"] == pytest.approx(expected)
    assert fit.stats["lp"].item() == pytest.approx(expected)
    # At the maximum, the cross-entropy of a normal is its entropy.
    entropy = stats.norm(Y.mean(), Y.std()).entropy()
    assert fit.stats["cross_entropy"] == pytest.approx(entropy)


def test_logistic_regression_equals_statsmodels():
    fit = probdl.infer(logistic_regression, X, CLASSES, method="mle", seed=1)
    reference = sm.Logit(CLASSES, sm.add_constant(X)).fit(disp=0, tol=1e-12)
    estimate = np.r_[fit.draws["intercept"].ravel(), fit.draws["beta"].ravel()]
    error = np.r_[fit.stats["standard_error"]["intercept"], fit.stats["standard_error"]["beta"]]
    np.testing.assert_allclose(estimate, reference.params, atol=1e-6)
    np.testing.assert_allclose(error, reference.bse, atol=1e-4)
    assert fit.stats["log_likelihood"] == pytest.approx(reference.llf)
    assert fit.stats["information"].shape == (4, 4)
    assert fit.stats["labels"] == ["intercept", "beta[0]", "beta[1]", "beta[2]"]


def test_simplex_standard_errors_are_those_of_the_multinomial():
    counts = np.array([20.0, 50.0, 30.0])

    def model(counts):
        p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
        pyro.sample("y", dist.Multinomial(probs=p, total_count=100), obs=counts)

    fit = probdl.infer(model, counts, method="mle", seed=1)
    p = counts / 100
    np.testing.assert_allclose(fit.draws["p"][0, 0], p, atol=1e-6)
    np.testing.assert_allclose(
        fit.stats["standard_error"]["p"], (p * (1 - p) / 100) ** 0.5, atol=1e-4
    )


def test_a_mixture_sums_its_discrete_site_out():
    rng = np.random.default_rng(21)
    y = np.r_[rng.normal(-4.0, 1.0, 60), rng.normal(4.0, 1.0, 40)]

    def model(y):
        weight = pyro.sample("weight", dist.Beta(1.0, 1.0))
        mu = pyro.sample("mu", dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).to_event(1))
        with pyro.plate("obs", len(y)):
            k = pyro.sample("k", dist.Bernoulli(weight))
            pyro.sample("y", dist.Normal(mu[k.long()], 1.0), obs=y)

    fit = probdl.infer(model, y, method="mle", seed=1)
    weight, mu = fit.draws["weight"].item(), fit.draws["mu"][0, 0]
    density = (1 - weight) * stats.norm(mu[0], 1).pdf(y) + weight * stats.norm(mu[1], 1).pdf(y)
    assert fit.stats["log_likelihood"] == pytest.approx(np.log(density).sum())
    # At the maximum, the mean of a component is the mean of the data, weighted by responsibility.
    share = weight * stats.norm(mu[1], 1).pdf(y) / density
    assert mu[1] == pytest.approx((share * y).sum() / share.sum(), abs=1e-6)
    assert weight == pytest.approx(share.mean(), abs=1e-6)


def test_a_network_is_fitted_through_its_own_parameters():
    class Linear(pyro.nn.PyroModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(3, 1)
            self.sigma = pyro.nn.PyroParam(torch.tensor(1.0), dist.constraints.positive)

        def forward(self, x, y=None):
            mean = self.net(x).squeeze(-1)
            with pyro.plate("obs", len(x)):
                pyro.sample("y", dist.Normal(mean, self.sigma), obs=y)

    y = X @ [1.0, 2.0, 3.0] + 4 + NOISE
    fit = probdl.infer(Linear(), X, y, method="mle", seed=1)
    exact = np.linalg.lstsq(sm.add_constant(X), y, rcond=None)
    residual = (exact[1].item() / 200) ** 0.5
    summary = fit.summary()
    assert summary.loc["sigma", "estimate"] == pytest.approx(residual, abs=1e-6)
    weights = summary.filter(like="weight", axis=0)["estimate"]
    np.testing.assert_allclose(weights, exact[0][1:], atol=1e-6)
    np.testing.assert_allclose(
        fit.predict(X)["y"][0, 0] - y, 0.0, atol=8 * residual
    )  # values, not only shapes


def test_a_flat_likelihood_is_found_and_named():
    with pytest.warns(probdl.FindingWarning, match="likelihood is flat"):
        fit = probdl.infer(
            eight_schools, np.arange(9.0, 17.0), np.arange(8.0), method="mle", seed=1
        )
    finding = next(f for f in fit.diagnose() if f.check == "flat")
    assert {"mu", "tau", "theta_trans"} >= set(finding.sites) >= {"mu"}
    assert "2 directions" in finding.message
    # The data identify the effects, with their standard errors.
    np.testing.assert_allclose(fit.draws["theta"][0, 0], np.arange(8.0), atol=1e-6)
    np.testing.assert_allclose(
        fit.stats["standard_error"]["theta"], np.arange(9.0, 17.0), rtol=1e-4
    )
    assert np.isinf(fit.stats["standard_error"]["mu"])


def test_collinear_predictors_are_flat_and_ill_conditioned_ones_are_not():
    y = X @ [1.0, 2.0, 3.0] + NOISE
    collinear = np.c_[X[:, :2], X[:, 0] + X[:, 1]]
    with pytest.warns(probdl.FindingWarning, match="flat"):
        fit = probdl.infer(linear_regression, collinear, y, method="mle", seed=1)
    finding = next(f for f in fit.diagnose() if f.check == "flat")
    assert finding.sites == ("beta",)
    year = np.arange(2000.0, 2200.0)
    design = np.c_[year, year**2]
    fit = probdl.infer(linear_regression, design, y, method="mle", seed=1)
    assert "flat" not in [f.check for f in fit.diagnose()]
    exact = np.linalg.lstsq(sm.add_constant(design), y, rcond=1e-20)[0]
    np.testing.assert_allclose(fit.draws["beta"][0, 0], exact[1:], rtol=1e-4)


def test_separated_classes_have_no_maximum():
    with pytest.warns(probdl.FindingWarning, match="no maximum at finite values"):
        fit = probdl.infer(logistic_regression, X, X[:, 0] > 0, method="mle", seed=1)
    assert "no_maximum" in [f.check for f in fit.diagnose()]
    fit = probdl.infer(logistic_regression, X, X[:, 0] > 0, method="map", seed=1)
    assert not fit.diagnose()


def test_a_maximum_at_the_edge_of_the_support():
    with pytest.warns(probdl.FindingWarning, match="edge of the support of p"):
        fit = probdl.infer(beta_binomial, np.array([5]), np.array([0]), method="mle", seed=1)
    assert fit.draws["p"].item() == pytest.approx(0.0, abs=1e-6)


def test_map_is_the_mode_in_the_constrained_space():
    fit = probdl.infer(
        beta_binomial, np.array([10]), np.array([3]), a=2.0, b=4.0, method="map", seed=1
    )
    assert fit.draws["p"].item() == pytest.approx((2 + 3 - 1) / (2 + 4 + 10 - 2), abs=1e-6)
    assert fit.stats["log_likelihood"] == pytest.approx(
        stats.binom(10, fit.draws["p"].item()).logpmf(3)
    )


def test_map_with_flat_priors_is_maximum_likelihood():
    def model(y):
        mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
        sigma = pyro.sample("sigma", dist.ImproperUniform(dist.constraints.positive, (), ()))
        pyro.sample("y", dist.Normal(mu, sigma), obs=y)

    fits = [probdl.infer(model, Y, method=method, seed=1) for method in ("mle", "map")]
    for site in ("mu", "sigma"):
        assert fits[0].draws[site] == pytest.approx(fits[1].draws[site], abs=1e-7)
        errors = [fit.stats["standard_error"][site] for fit in fits]
        assert errors[0] == pytest.approx(errors[1], rel=1e-6)


def test_several_starts_find_the_higher_of_two_modes():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        pyro.sample("y", dist.Normal(mu**2, 1.0), obs=y)
        pyro.factor("tilt", mu)

    fit = probdl.infer(model, np.array([4.0]), method=probdl.MAP(starts=8), seed=1)
    assert fit.draws["mu"].item() > 1.9
    assert "several_optima" in [f.check for f in fit.diagnose()]


def test_ctrl_c_returns_the_best_start_so_far():
    runs = 0

    def model(y):
        nonlocal runs
        runs += 1
        if runs == 40:
            raise KeyboardInterrupt
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    with pytest.warns(probdl.FindingWarning, match="interrupted after"):
        fit = probdl.infer(model, Y, method=probdl.MLE(starts=50, engine="eager"), seed=1)
    assert fit.draws["mu"].item() == pytest.approx(Y.mean(), abs=1e-6)


def test_summary_shows_estimate_error_and_interval():
    fit = probdl.infer(normal, Y, method=probdl.MLE(ci_prob=0.5), seed=1)
    table = fit.summary()
    assert list(table.columns) == ["estimate", "standard_error", "ci_low", "ci_high"]
    assert list(table.index) == ["mu", "sigma"]
    row = table.loc["mu"]
    assert row.ci_high - row.estimate == pytest.approx(0.6744898 * row.standard_error)


def test_a_network_in_a_closure_is_fitted_whatever_its_dtype():
    torch.manual_seed(0)
    net = torch.nn.Linear(1, 1)  # float32, and the data are computed in float64

    def model(x, y=None):
        pyro.module("net", net)
        with pyro.plate("obs", len(x)):
            pyro.sample("y", dist.Normal(net(x)[:, 0], 0.5), obs=y)

    x = torch.linspace(-1, 1, 21)[:, None]
    fit = probdl.infer(model, x, 2 * x[:, 0] + 0.3, method="mle", seed=1)
    values = {name.split("$$$")[-1]: v.item() for name, v in fit.draws.items()}
    assert values == pytest.approx({"weight": 2.0, "bias": 0.3}, abs=1e-5)
    assert fit.predict(x)["y"].shape == (1, 1, 21)


def small_network(x, y, width=16):
    """One hidden layer; all sites have proper priors, so a maximum exists."""
    w1 = pyro.sample("w1", dist.Normal(torch.zeros(width), 1.0).to_event(1))
    b1 = pyro.sample("b1", dist.Normal(torch.zeros(width), 1.0).to_event(1))
    w2 = pyro.sample("w2", dist.Normal(torch.zeros(width), 1.0).to_event(1))
    b2 = pyro.sample("b2", dist.Normal(0.0, 1.0))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("obs", len(x)):
        mean = torch.tanh(x[:, None] * w1 + b1) @ w2 + b2
        pyro.sample("y", dist.Normal(mean, noise), obs=y)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("method", ["map", "laplace"])
def test_a_network_with_priors_has_a_maximum(method, seed):
    x = np.linspace(-2, 2, 40)
    y = np.sin(2 * x) + 0.1 * np.random.default_rng(0).normal(size=40)
    fit = probdl.infer(small_network, x, y, method=method, seed=seed)
    found = {f.check for f in fit.diagnose()}
    assert not found & {"no_maximum", "not_converged", "saddle", "boundary"}


def test_a_density_that_is_infinite_at_the_edge():
    def model(y):
        p = pyro.sample("p", dist.Dirichlet(torch.tensor([0.1, 0.5, 2.0])))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Categorical(p), obs=y)

    fit = probdl.infer(model, np.array([2, 2, 1, 2]), method="map", seed=1)
    assert fit.draws["p"].squeeze()[0] == pytest.approx(0.0, abs=1e-6)
    assert "boundary" in {f.check for f in fit.diagnose()}


def test_a_density_without_second_derivatives():
    def model(y):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Stable(1.5, 0.0, scale), obs=y)

    y = np.array([0.3, -1.0, 0.5, 2.0, -0.2])
    fit = probdl.infer(model, y, method="map", seed=1)
    assert 0.2 < fit.draws["scale"].item() < 2


def test_a_maximum_at_the_kinks_of_a_network_is_reported_as_such():
    """The weights have priors, so that there is a maximum, but no second derivatives at it."""
    rng = np.random.default_rng(3)
    x = rng.uniform(0.0, 2.0, size=(300, 10))
    y = (x @ rng.normal(size=(10, 6)) + rng.normal(size=(300, 6))).argmax(1)
    net = probdl.nn.bayesian(
        torch.nn.Sequential(torch.nn.Linear(10, 8), torch.nn.ReLU(), torch.nn.Linear(8, 6)),
        prior=1.0,
    )

    def model(x, y=None):
        logits = net(x)
        with pyro.plate("row", len(x)):
            pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    with pytest.warns(probdl.FindingWarning, match="has kinks along"):
        probdl.infer(model, x, y, method="map", seed=1)
    with pytest.raises(probdl.ModelError, match="as with ReLU activations"):
        probdl.infer(model, x, y, method=probdl.Laplace(), seed=1)


def centred_groups(g, y=None):
    mu = pyro.sample("mu", dist.Normal(50.0, 20.0))
    sd = pyro.sample("sd", dist.HalfNormal(10.0))
    s = pyro.sample("s", dist.HalfNormal(10.0))
    with pyro.plate("g", int(g.max()) + 1):
        a = pyro.sample("a", dist.Normal(mu, sd))
    with pyro.plate("r", len(g)):
        pyro.sample("y", dist.Normal(a[g], s), obs=y)


@pytest.mark.parametrize("seed", range(3))
def test_a_scale_that_collapses_is_one_finding(seed):
    """The density has no bound where a scale is 0; on the way there it is flat, and a saddle."""
    rng = np.random.default_rng(0)
    g = np.repeat(np.arange(12), 25)
    y = rng.normal(50, 4, 12)[g] + rng.normal(0, 5, 300)
    fit = probdl.infer(centred_groups, g, y, method="map", seed=seed)
    (finding,) = fit.diagnose()
    assert finding.check == "no_maximum"
    assert "local maximum at best" in finding.message
    with pytest.raises(probdl.ModelError) as caught:
        probdl.infer(centred_groups, g, y, method="laplace", seed=seed)
    assert "for a scale a prior whose density is 0 at 0" in str(caught.value)
    assert "ReLU" not in str(caught.value)


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), TimeUp(2.0)])
def test_an_interruption_of_the_curvature_returns_the_maximum(monkeypatch, stop):
    def hessian(self, z):
        raise stop

    x = np.random.default_rng(0).normal(size=(30, 2))
    y = x @ [1.0, 2.0] + 0.1
    whole = probdl.infer(linear_regression, x, y, method="map", seed=1)
    monkeypatch.setattr(probdl.LogDensity, "hessian", hessian)
    fit = probdl.infer(linear_regression, x, y, method="map", seed=1)
    np.testing.assert_allclose(fit.draws["beta"], whole.draws["beta"], atol=1e-4)
    assert "standard_error" not in fit.stats
    (finding,) = [f for f in fit.diagnose() if f.check in ("interrupted", "time_limit")]
    assert "without standard errors" in finding.message
    assert "no_information" not in [f.check for f in fit.diagnose()]
    with pytest.raises((KeyboardInterrupt, probdl.TimeLimitError)):
        probdl.infer(linear_regression, x, y, method="laplace", seed=1)


def test_the_hessian_is_that_of_torch():
    def model(y):
        a = pyro.sample("a", dist.Gamma(2.0, 1.0))
        b = pyro.sample("b", dist.Normal(a, 1.0))
        pyro.sample("y", dist.Normal(a * b, 1.0), obs=y)

    density = probdl.LogDensity.from_model(model, (torch.tensor(1.0),))
    z = torch.tensor([0.3, -0.2], dtype=torch.float64)
    threads = torch.get_num_threads()
    expected = torch.autograd.functional.hessian(density, z)
    torch.testing.assert_close(density.hessian(z), expected, rtol=0, atol=0)
    assert torch.get_num_threads() == threads
