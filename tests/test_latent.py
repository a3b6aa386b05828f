"""The ELBO, the evidence and the codes of a linear Gaussian model, where they are known."""

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import nn
from torch.distributions import constraints

import probdl

W = torch.tensor([[1.0, 0.5], [-0.4, 0.8], [0.3, -1.0]], dtype=torch.float64)
NOISE = 0.6
LATENT = 2


class Factors(nn.Module):
    """z ~ N(0, I), x ~ N(W z, NOISE²), with an inexact guide N(A x, diag(s²))."""

    def __init__(self, correct=False):
        super().__init__()
        precision = torch.eye(LATENT) + W.T @ W / NOISE**2
        self.covariance = torch.linalg.inv(precision)
        exact = self.covariance @ W.T / NOISE**2
        self.a = exact if correct else 0.8 * exact
        self.s = torch.tensor([0.5, 0.4])
        self.root = torch.linalg.cholesky(self.covariance)
        self.correct = correct

    def model(self, x=None):
        pyro.param("unused", torch.tensor(0.0))
        rows = 5 if x is None else len(x)
        with pyro.plate("data", rows):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z @ W.T, NOISE).to_event(1), obs=x)

    def guide(self, x=None):
        shift = pyro.param("shift", torch.zeros(LATENT))
        with pyro.plate("data", len(x)):
            loc = x @ self.a.T + shift
            if self.correct:
                q = dist.MultivariateNormal(loc, scale_tril=self.root)
            else:
                q = dist.Normal(loc, self.s).to_event(1)
            pyro.sample("z", q)


NO_TRAINING = probdl.SVI(steps=10, learning_rate=1e-12)


@pytest.fixture(scope="module")
def x():
    rng = np.random.default_rng(1)
    z = rng.normal(size=(40, LATENT))
    return torch.from_numpy(z @ W.numpy().T + NOISE * rng.normal(size=(40, 3)))


@pytest.fixture(scope="module")
def fit(x):
    return probdl.infer(Factors(), x, method=NO_TRAINING, seed=1)


@pytest.fixture(scope="module")
def exact_fit(x):
    return probdl.infer(Factors(correct=True), x, method=NO_TRAINING, seed=1)


def evidence(x):
    covariance = W.numpy() @ W.numpy().T + NOISE**2 * np.eye(3)
    return stats.multivariate_normal(np.zeros(3), covariance).logpdf(x.numpy())


def divergence(x):
    """KL(q || p(z|x)) of each row."""
    f = Factors()
    mean, covariance = x.numpy() @ f.a.numpy().T, np.diag(f.s.numpy() ** 2)
    true = Factors(correct=True)
    precision = np.linalg.inv(true.covariance.numpy())
    gap = mean - x.numpy() @ true.a.numpy().T
    log_det = np.linalg.slogdet(true.covariance.numpy())[1] - np.linalg.slogdet(covariance)[1]
    trace = np.trace(precision @ covariance)
    return 0.5 * (trace + np.einsum("ni,ij,nj->n", gap, precision, gap) - LATENT + log_det)


def test_the_elbo_is_the_evidence_minus_the_divergence(fit, x):
    count = 4000
    elbo = fit.elbo(x, num_samples=count)
    expected = evidence(x) - divergence(x)
    assert elbo.standard_error > 0
    assert abs(elbo.total - expected.sum()) < 4 * elbo.standard_error
    # The KL term of each row is exact, so the only error is that of the mean of log p(x|z).
    f = Factors()
    mean = x.numpy() @ f.a.numpy().T
    kl = 0.5 * (f.s.numpy() ** 2 + mean**2 - 1 - 2 * np.log(f.s.numpy())).sum(1)
    np.testing.assert_allclose(elbo.kl, kl, rtol=1e-6)
    spread = 3.0 / np.sqrt(count)  # an upper bound of the sd of log p(x|z) under q
    np.testing.assert_allclose(elbo.pointwise, expected, atol=4 * spread)
    assert elbo.pointwise.shape == elbo.reconstruction.shape == (40,)
    assert elbo.global_kl == 0.0


def test_with_the_posterior_as_guide_the_elbo_is_the_evidence(exact_fit, x):
    elbo = exact_fit.elbo(x, num_samples=20)
    # log p(x, z) - log q(z) is the same at every z.
    estimate = exact_fit.log_evidence(x, num_samples=30)
    np.testing.assert_allclose(estimate.pointwise, evidence(x), atol=1e-6)
    np.testing.assert_allclose(estimate.standard_error, 0.0, atol=1e-6)
    assert abs(elbo.total - evidence(x).sum()) < 4 * elbo.standard_error


def test_importance_sampling_estimates_the_evidence(fit, x):
    estimate = fit.log_evidence(x, num_samples=4000)
    gap = np.abs(estimate.pointwise - evidence(x))
    np.testing.assert_array_less(gap, 4.5 * estimate.standard_error)
    assert (estimate.standard_error < 0.05).all()
    assert estimate.pareto_k.shape == (40,)
    assert estimate.pareto_k.max() < 0.7
    assert estimate.total == pytest.approx(evidence(x).sum(), abs=0.5)
    # More samples give a tighter bound on average.
    few = np.mean([fit.log_evidence(x[:, :], num_samples=k).total for k in (1, 1, 1, 2)])
    assert few < estimate.total


def test_scores_are_the_evidence_of_each_row(exact_fit, x):
    score = exact_fit.log_predictive(x)
    np.testing.assert_allclose(score.pointwise["data"], evidence(x), atol=1e-6)
    assert score.total == pytest.approx(evidence(x).sum())


def test_a_guide_that_misses_the_posterior_makes_scores_unreliable(fit, x):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score = fit.log_predictive(x)
    assert np.isfinite(score.joint_standard_error)
    assert score.pareto_k.shape == (40,)

    class TooNarrow(Factors):
        def __init__(self):
            super().__init__(correct=True)
            self.root = 0.2 * self.root

    narrow = probdl.infer(TooNarrow(), x, method=NO_TRAINING, seed=1)
    with pytest.warns(probdl.FindingWarning, match=r"does not cover .* of \d+ of 40 rows"):
        score = narrow.log_predictive(x)
    assert score.total < evidence(x).sum() - 5  # which no error says
    assert np.isinf(score.joint_standard_error)
    assert "unreliable" in repr(score)


def test_encoding_and_decoding(fit, x):
    mean = x.numpy() @ Factors().a.numpy().T
    np.testing.assert_allclose(fit.encode(x)["z"], mean, atol=1e-6)
    draws = fit.encode(x, num_samples=500)["z"]
    assert draws.shape == (500, 40, LATENT)
    error = Factors().s.numpy() / np.sqrt(500)
    np.testing.assert_array_less(np.abs(draws.mean(0) - mean) / error, 4.5)
    codes = np.array([[1.0, 0.0], [0.0, -2.0], [0.5, 0.5]])
    np.testing.assert_allclose(fit.decode(codes)["x"], codes @ W.numpy().T, atol=1e-6)
    np.testing.assert_allclose(fit.decode({"z": codes})["x"], codes @ W.numpy().T, atol=1e-6)
    np.testing.assert_allclose(fit.reconstruct(x)["x"], mean @ W.numpy().T, atol=1e-6)
    many = fit.decode(np.zeros((100, LATENT)))["x"]  # more rows than the data have
    assert many.shape == (100, 3)


def test_new_data_are_drawn_from_the_prior(fit):
    draws = np.concatenate([fit.predict(x=None)["x"][0, 0], fit.predict()["x"][0, 0]])
    assert draws.shape == (45, 3)
    covariance = W.numpy() @ W.numpy().T + NOISE**2 * np.eye(3)
    statistic = np.einsum("ni,ij,nj->", draws, np.linalg.inv(covariance), draws)
    assert 0.001 < stats.chi2(draws.size).cdf(statistic) < 0.999


def test_a_model_with_shared_sites_has_one_evidence():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    def guide(y):
        loc = pyro.param("loc", torch.tensor(0.0))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        pyro.sample("mu", dist.Normal(loc, scale))

    y = torch.tensor([0.3, 1.0, -0.2])
    method = probdl.SVI(guide=guide, steps=3000)
    fit = probdl.infer(model, y, method=method, seed=1)
    exact = stats.multivariate_normal(np.zeros(3), np.eye(3) + 1.0).logpdf(y)
    estimate = fit.log_evidence()
    assert estimate.pointwise.shape == ()
    assert abs(estimate.total - exact) < 4 * float(estimate.standard_error) + 1e-3
    elbo = fit.elbo()
    assert elbo.global_kl > 0
    np.testing.assert_allclose(elbo.kl, 0.0)
    assert elbo.total == pytest.approx(exact, abs=4 * elbo.standard_error + 0.01)
    with pytest.raises(probdl.ModelError, match="a latent site in the data plate"):
        fit.encode(y)


def test_methods_that_need_a_guide_raise_without_one(x, fit):
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    nuts = probdl.infer(model, np.ones(30), method=probdl.NUTS(draws=500, chains=2), seed=1)
    for name in ("elbo", "log_evidence", "encode", "decode", "reconstruct"):
        assert not hasattr(nuts, name)
        assert name not in dir(nuts)
        with pytest.raises(probdl.ModelError, match=rf"A fit by nuts has no guide.*{name}\(\)"):
            getattr(nuts, name)()
    with pytest.raises(probdl.SettingError, match=r"codes of site 'z' with the shape \(rows, 2\)"):
        fit.decode(np.zeros((3, 4)))
    with pytest.raises(probdl.ModelError, match=r"log_evidence\(\), which integrates over them"):
        fit.log_likelihood()


def test_scores_are_reproducible_and_leave_the_random_generator_unchanged(fit, x):
    before = torch.get_rng_state()
    first, second = (fit.log_predictive(x).pointwise["data"] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_only_the_guide_has_parameters():
    def model(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        weight = pyro.param("weight", torch.tensor(0.1, dtype=torch.float64))
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(weight * x, 0.5**0.5))

    x = np.random.default_rng(0).normal(0.0, 2**0.5, size=200)
    method = probdl.SVI(guide=guide, steps=1000, batch_size=50)
    fit = probdl.infer(model, x, method=method, seed=1)
    assert fit.draws["weight"].item() == pytest.approx(0.5, abs=0.03)  # E[z | x] = x / 2
    np.testing.assert_allclose(fit.encode()["z"], fit.draws["weight"].item() * x)
    assert fit.predict(np.zeros(5))["x"].shape == (1, 1, 5)
