"""`obs_mask=`: missing observations are latent, and nothing else is."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch.distributions import constraints

import probdl

X = torch.linspace(-2.0, 2.0, 20)
SEEN = torch.arange(20) >= 5
Y = 1.5 * X + 0.3 * torch.sin(7 * X)
PRECISION = (X[SEEN].double() ** 2).sum().item() / 0.09 + 1 / 25
MEAN = (X[SEEN].double() * Y[SEEN].double()).sum().item() / 0.09 / PRECISION
SD = PRECISION**-0.5
EVIDENCE = (
    dist.MultivariateNormal(
        torch.zeros(15).double(),
        0.09 * torch.eye(15).double() + 25 * torch.outer(X[SEEN], X[SEEN]).double(),
    )
    .log_prob(Y[SEEN].double())
    .item()
)


def line(x, y, seen):
    a = pyro.sample("a", dist.Normal(0.0, 5.0))
    with pyro.plate("n", len(x)):
        pyro.sample("y", dist.Normal(a * x, 0.3), obs=y, obs_mask=seen)


def guide(x, y, seen):
    loc = pyro.param("loc", torch.tensor(1.0))
    scale = pyro.param("scale", torch.tensor(0.1), constraint=constraints.positive)
    noise = pyro.param("noise", torch.tensor(0.4), constraint=constraints.positive)
    a = pyro.sample("a", dist.Normal(loc, scale))
    with pyro.plate("n", len(x)), poutine.mask(mask=~seen):
        pyro.sample("y_unobserved", dist.Normal(a * x, noise))


METHODS = {
    "nuts": probdl.NUTS(),
    "metropolis": probdl.Metropolis(draws=3000),
    "laplace": probdl.Laplace(draws=4000),
    "pathfinder": probdl.Pathfinder(draws=4000),
    "full rank": probdl.SVI(steps=3000, draws=4000),
    "mean field": probdl.SVI(guide="normal", steps=3000, draws=4000),
    "own guide": probdl.SVI(guide=guide, steps=3000, draws=4000),
    "a guide of the model": probdl.SVI(guide=AutoNormal(line), steps=3000, draws=4000),
}


@pytest.mark.parametrize("name", METHODS)
def test_missing_observations_are_imputed_by_every_method(name):
    fit = probdl.infer(line, X, Y, SEEN, method=METHODS[name], seed=1)
    assert fit.draws["a"].mean() == pytest.approx(MEAN, abs=0.12 * SD)
    sd, of_missing = SD, np.sqrt(0.09 + (X[:5].numpy() * SD) ** 2)
    if name in ("mean field", "a guide of the model"):  # conditional standard deviations, reported
        sd, of_missing = (PRECISION + (X[:5] ** 2).sum().item() / 0.09) ** -0.5, np.full(5, 0.3)
    assert fit.draws["a"].std() == pytest.approx(sd, rel=0.1)
    missing = fit.draws["y_unobserved"]
    np.testing.assert_allclose(missing.mean((0, 1)), MEAN * X[:5], atol=0.06)
    np.testing.assert_allclose(missing.std((0, 1)), of_missing, rtol=0.15)
    joined = fit.draws["y"]
    np.testing.assert_array_equal(joined[..., :5], missing)
    np.testing.assert_allclose(joined[0, 0, 5:], Y[5:], rtol=1e-6)
    assert fit.stats["engine"] == "native"
    if "log_evidence" in fit.stats:
        assert fit.stats["log_evidence"] == pytest.approx(EVIDENCE, abs=0.1)


def test_maximum_a_posteriori_leaves_out_what_is_not_used():
    fit = probdl.infer(line, X, Y, SEEN, method="map", seed=1)
    assert fit.draws["a"].item() == pytest.approx(MEAN, abs=1e-5)
    np.testing.assert_allclose(fit.draws["y_unobserved"][0, 0], MEAN * X[:5], atol=1e-4)


def test_missing_values_may_be_nan_after_a_fit_without_nan():
    full = probdl.infer(line, X, Y, SEEN, method="laplace", seed=1)
    nan = probdl.infer(line, X, torch.where(SEEN, Y, torch.nan), SEEN, method="laplace", seed=1)
    np.testing.assert_allclose(nan.draws["a"], full.draws["a"], rtol=1e-6)


def test_a_mask_of_the_same_shape_with_other_elements():
    other = torch.arange(20) < 3
    fit = probdl.infer(line, X, Y, other, method="laplace", seed=1)
    precision = (X[other] ** 2).sum().item() / 0.09 + 1 / 25
    mean = (X[other] * Y[other]).sum().item() / 0.09 / precision
    assert fit.draws["a"].mean() == pytest.approx(mean, abs=0.1 * precision**-0.5)
    assert fit.draws["y_unobserved"].shape[-1] == 17


def test_all_observed_has_nothing_to_impute():
    fit = probdl.infer(line, X, Y, torch.ones(20, dtype=torch.bool), method="laplace", seed=1)
    assert "y_unobserved" not in fit.draws
    assert fit.idata.log_likelihood["y_observed"].shape[-1] == 20


def test_minibatches_impute_by_the_users_guide():
    method = probdl.SVI(guide=guide, steps=4000, batch_size=10, draws=4000)
    fit = probdl.infer(line, X, Y, SEEN, method=method, seed=1)
    assert not fit.diagnose()
    assert fit.draws["a"].mean() == pytest.approx(MEAN, abs=0.3 * SD)
    with pytest.raises(probdl.ModelError, match=r"automatic guide has parameters for each row"):
        probdl.infer(line, X, Y, SEEN, method=probdl.SVI(steps=100, batch_size=10), seed=1)


def test_a_scale_around_the_data():
    def model(x, y, seen):
        a = pyro.sample("a", dist.Normal(0.0, 5.0))
        with pyro.plate("n", len(x)), poutine.scale(scale=0.5):
            pyro.sample("y", dist.Normal(a * x, 0.3), obs=y, obs_mask=seen)

    fit = probdl.infer(model, X, Y, SEEN, method=probdl.Laplace(draws=4000), seed=1)
    variance = 1 / ((PRECISION - 1 / 25) / 2 + 1 / 25)
    assert fit.draws["a"].std() == pytest.approx(variance**0.5, rel=0.06)
    assert fit.draws["y_unobserved"][..., 4].std() == pytest.approx(
        (0.18 + X[4].item() ** 2 * variance) ** 0.5, rel=0.06
    )


def test_missing_values_of_a_series_depend_on_both_neighbours():
    def model(y, seen):
        last = pyro.sample("y0", dist.Normal(0.0, 1.0), obs=y[0])
        for t in range(1, 3):
            last = pyro.sample(f"y{t}", dist.Normal(last, 1.0), obs=y[t], obs_mask=seen[t])

    y, seen = torch.tensor([0.0, 99.0, 2.0]), torch.tensor([True, False, True])
    fit = probdl.infer(model, y, seen, method=probdl.NUTS(draws=2000), seed=1)
    assert fit.draws["y1_unobserved"].mean() == pytest.approx(1.0, abs=0.05)
    assert fit.draws["y1_unobserved"].std() == pytest.approx(0.5**0.5, rel=0.06)
    assert "y2_unobserved" not in fit.draws


def test_missing_vectors():
    def model(y, seen):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.MultivariateNormal(mu, torch.eye(2)), obs=y, obs_mask=seen)

    fit = probdl.infer(model, torch.ones(6, 2), torch.arange(6) >= 2, method="nuts", seed=1)
    assert fit.draws["y_unobserved"].shape[2:] == (2, 2)
    np.testing.assert_allclose(fit.draws["mu"].mean((0, 1)), 4 / (4 + 1 / 9), atol=0.05)
    np.testing.assert_allclose(
        fit.draws["y_unobserved"].std(), (1 + 1 / (4 + 1 / 9)) ** 0.5, rtol=0.06
    )


def test_positive_values_have_the_jacobian_of_what_is_missing_only():
    def model(y, seen):
        with pyro.plate("n", len(y)):
            v = pyro.sample("y", dist.LogNormal(0.0, 0.5), obs=y, obs_mask=seen)
        pyro.sample("product", dist.Normal(v.log().sum(), 0.5), obs=torch.tensor(1.0))

    fit = probdl.infer(model, torch.ones(4), torch.arange(4) < 3, method="laplace", seed=1)
    logs = np.log(fit.draws["y_unobserved"])  # N(1/2, 1/8)
    assert logs.mean() == pytest.approx(0.5, abs=0.05)
    assert logs.std() == pytest.approx(8**-0.5, rel=0.1)


def test_missing_discrete_values_are_summed_out():
    def model(y, seen):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Bernoulli(p), obs=y, obs_mask=seen)

    fit = probdl.infer(model, torch.ones(6), torch.arange(6) >= 2, method="importance", seed=1)
    assert fit.stats["log_evidence"] == pytest.approx(-math.log(5), abs=0.05)
    assert fit.draws["y"][..., :2].mean() == pytest.approx(5 / 6, abs=0.05)


def mixture(y, seen):
    mu = pyro.sample("mu", dist.Normal(torch.tensor([-3.0, 3.0]), 1.0).to_event(1))
    with pyro.plate("n", len(y)):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Normal(mu[z.long()], 1.0), obs=y, obs_mask=seen)


def test_missing_values_of_a_mixture():
    seen, y = torch.arange(6) < 4, torch.tensor([-3.0, -2.0, 3.0, 4.0, 0.0, 0.0])
    fit = probdl.infer(mixture, y, seen, seed=1)
    observed = probdl.infer(mixture, y[:4], torch.ones(4, dtype=torch.bool), seed=2)
    for i in range(2):
        a, b = fit.draws["mu"][..., i], observed.draws["mu"][..., i]
        assert a.mean() == pytest.approx(b.mean(), abs=0.08)
        assert a.std() == pytest.approx(b.std(), rel=0.1)
    scored = fit.log_likelihood()["y_observed"].mean((0, 1))
    np.testing.assert_allclose(
        scored[:4], observed.log_likelihood()["y_observed"].mean((0, 1)), atol=0.1
    )
    assert set(np.flatnonzero(scored)) == {0, 1, 2, 3}


def test_latent_values_beside_a_summed_site_keep_their_draws():
    """Summing out a site gives distributions that depend on it a further dimension."""

    def model(y):
        with pyro.plate("n", len(y)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            x = pyro.sample("x", dist.Normal(4 * z - 2, 1.0))
            pyro.sample("y", dist.Normal(x, 0.5), obs=y)

    y = torch.tensor([-2.0, 2.5, 2.0])
    fit = probdl.infer(model, y, seed=1)
    exact = dist.Normal(torch.from_numpy(fit.draws["x"]), 0.5).log_prob(y)
    np.testing.assert_allclose(fit.log_likelihood()["y"], exact, rtol=1e-6)


def test_latent_vectors_outside_of_plates_keep_their_draws():
    def model(y):
        x = pyro.sample("x", dist.Normal(torch.zeros(3), 1.0))
        pyro.sample("y", dist.Normal(x, 0.5), obs=y)

    y = torch.tensor([-2.0, 2.5, 2.0])
    fit = probdl.infer(model, y, method="laplace", seed=1)
    exact = dist.Normal(torch.from_numpy(fit.draws["x"]), 0.5).log_prob(y)
    np.testing.assert_allclose(fit.log_likelihood()["y"], exact, rtol=1e-6)
    np.testing.assert_allclose(fit.predict()["y"].mean((0, 1)), 0.8 * y, atol=0.1)


def test_sites_of_these_names_that_the_user_wrote_stay_as_they_are():
    def model(y):
        pyro.sample("y_observed", dist.Normal(torch.zeros(3), 1.0).to_event(1), obs=y)
        rest = pyro.sample("y_unobserved", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        total = pyro.deterministic("y", y + rest, event_dim=1)
        pyro.sample("z", dist.Normal(total, 1.0).to_event(1), obs=torch.ones(3))

    fit = probdl.infer(model, torch.zeros(3), method="laplace", seed=1)
    assert fit.draws["y_unobserved"].shape[2:] == (3,)
    np.testing.assert_allclose(fit.draws["y_unobserved"].mean((0, 1)), 0.5, atol=0.1)


def test_cross_validation_and_random_rows():
    fit = probdl.infer(line, X, Y, SEEN, method=probdl.Laplace(draws=200), seed=1)
    result = fit.cross_validate(4, workers=1)
    assert np.isfinite(result.pointwise[SEEN.numpy()]).all()

    def rows(x, y, seen):
        a = pyro.sample("a", dist.Normal(0.0, 5.0))
        with pyro.plate("n", len(x), subsample_size=10) as i:
            pyro.sample("y", dist.Normal(a * x[i], 0.3), obs=y[i], obs_mask=seen[i])

    method = probdl.SVI(guide="normal", steps=200)
    fit = probdl.infer(rows, X, Y, SEEN, method=method, seed=1)
    assert np.isfinite(fit.stats["elbo"]).all()
