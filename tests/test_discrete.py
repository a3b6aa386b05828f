"""Draws of summed-out discrete sites, and log likelihoods of observations that they tie."""

import itertools
import warnings

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.special import log_softmax, logsumexp
from scipy.stats import norm

import probdl
from probdl.io.idata import variables

pytestmark = pytest.mark.filterwarnings("ignore::probdl.FindingWarning")

LAPLACE = probdl.Laplace(draws=1000)


def assert_shares(drawn, probabilities):
    """Compare indicators (draws, ...) with their probabilities at each draw."""
    error = np.sqrt((probabilities * (1 - probabilities)).mean(0) / len(drawn))
    error = 4 * error + 2 / len(drawn)  # the count of a rare value is a Poisson number
    error[probabilities.max(0) == 0] = 0.0
    assert (abs(drawn.mean(0) - probabilities.mean(0)) <= error).all()


def test_a_change_point():
    y = np.r_[np.random.default_rng(0).normal(0, 1, 8), np.random.default_rng(1).normal(1.5, 1, 8)]

    def model(y):
        a = pyro.sample("a", dist.Normal(0.0, 2.0))
        b = pyro.sample("b", dist.Normal(0.0, 2.0))
        at = pyro.sample("at", dist.Categorical(torch.ones(len(y))))
        mean = pyro.deterministic("mean", torch.where(torch.arange(len(y)) < at, a, b))
        with pyro.plate("time", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    fit = probdl.infer(model, y, method=LAPLACE, seed=1)
    a, b = (fit.draws[name][0, :, None, None] for name in ("a", "b"))
    before = np.arange(16) < np.arange(16)[:, None]  # (place, time)
    log_p = norm(np.where(before, a, b), 1).logpdf(y).sum(-1)
    p = np.exp(log_softmax(log_p, -1))
    at = fit.discrete()["at"][0]
    assert_shares(at[:, None] == np.arange(16), p)
    # A deterministic site that depends on `at` is that of the posterior.
    assert_shares(fit.draws["mean"][0] == fit.draws["a"][0][:, None], p @ before)
    # All observations depend on one another, so there is no pointwise log likelihood.
    with pytest.raises(probdl.ModelError, match="depend on one another"):
        fit.log_likelihood()


def test_the_labels_of_a_mixture_and_of_new_data():
    y = np.array([-1.0, 0.2, 0.5, 1.0, 3.0])

    def model(y=None, rows=5):
        w = pyro.sample("w", dist.Dirichlet(torch.ones(3)))
        m = pyro.sample("m", dist.Normal(torch.tensor([-1.0, 0.5, 2.0]), 0.1).to_event(1))
        with pyro.plate("rows", rows if y is None else len(y)):
            z = pyro.sample("z", dist.Categorical(w))
            pyro.sample("y", dist.Normal(m[z], 1.0), obs=y)

    def labels(y, fit):
        w, m = fit.draws["w"][0][:, None], fit.draws["m"][0][:, None]
        return np.exp(log_softmax(np.log(w) + norm(m, 1).logpdf(y[:, None]), -1))

    fit = probdl.infer(model, y, method=LAPLACE, seed=1)
    z = fit.discrete()["z"]
    assert z.shape == (1, 1000, 5)
    assert_shares(z[0, ..., None] == np.arange(3), labels(y, fit))
    np.testing.assert_array_equal(fit.discrete()["z"], z)
    new = np.array([-3.0, 0.0, 2.0])
    assert_shares(fit.discrete(new)["z"][0, ..., None] == np.arange(3), labels(new, fit))
    assert fit.discrete(num_samples=5000)["z"].shape == (1, 5000, 5)
    point = probdl.infer(model, y, method="map", seed=1)
    z = point.discrete(num_samples=4000)["z"][0]
    assert_shares(z[..., None] == np.arange(3), labels(y, point).repeat(4000, 0))
    assert point.discrete()["z"].shape == (1, 1000, 5)
    with pytest.raises(probdl.SettingError, match="num_samples=0"):
        fit.discrete(num_samples=0)
    # One score for each observation, as without ties.
    by_hand = logsumexp(
        np.log(fit.draws["w"][0][:, None]) + norm(fit.draws["m"][0][:, None], 1).logpdf(y[:, None]),
        axis=-1,
    )
    np.testing.assert_allclose(fit.log_likelihood()["y"][0], by_hand)


P = np.array([[0.8, 0.2], [0.3, 0.7]])


def hidden_markov(y):
    m = pyro.sample("m", dist.Normal(torch.tensor([-1.0, 1.0]), 0.1).to_event(1))
    x = torch.tensor(0)
    with pyro.plate("series", len(y)):
        for t in pyro.markov(range(y.shape[1])):
            x = pyro.sample(f"x_{t}", dist.Categorical(torch.tensor(P)[x]))
            pyro.sample(f"y_{t}", dist.Normal(m[x], 1.0), obs=y[:, t])


SERIES = np.random.default_rng(0).normal(size=(3, 4))


def paths(m, series):
    """Return all paths, and the log probabilities of path and series, (draws, series, paths)."""
    every = np.array(list(itertools.product(range(2), repeat=4)))
    prior = np.log(P[np.c_[np.zeros(16, int), every[:, :-1]], every]).sum(-1)
    score = norm(m[:, None, every], 1).logpdf(series[:, None]).sum(-1)
    return every, score + prior


def test_the_states_of_a_hidden_markov_model():
    fit = probdl.infer(hidden_markov, SERIES, method=LAPLACE, seed=1)
    every, log_p = paths(fit.draws["m"][0], SERIES)
    drawn = fit.discrete()
    states = np.stack([drawn[f"x_{t}"][0] for t in range(4)], -1)  # (draws, series, time)
    assert_shares((states[:, :, None] == every).all(-1), np.exp(log_softmax(log_p, -1)))


def test_series_of_a_hidden_markov_model_are_scored_as_a_whole():
    fit = probdl.infer(hidden_markov, SERIES, method=LAPLACE, seed=1)
    _, log_p = paths(fit.draws["m"][0], SERIES)
    points = fit.log_likelihood()
    assert list(points) == ["y"]
    np.testing.assert_allclose(points["y"][0], logsumexp(log_p, -1))
    score = fit.log_predictive()
    total = logsumexp(logsumexp(log_p, -1), axis=0) - np.log(1000)
    np.testing.assert_allclose(score.pointwise["y"], total)
    np.testing.assert_allclose(score.total, total.sum())
    assert np.asarray(az.loo(fit.idata, pointwise=True).pareto_k).shape == (3,)


def test_a_single_hidden_markov_chain_has_a_joint_score_only():
    fit = probdl.infer(hidden_markov, SERIES[:1], method=LAPLACE, seed=1)
    _, log_p = paths(fit.draws["m"][0], SERIES[:1])
    np.testing.assert_allclose(fit.log_likelihood()["y"][0], logsumexp(log_p, -1))

    def alone(y):
        m = pyro.sample("m", dist.Normal(torch.tensor([-1.0, 1.0]), 0.1).to_event(1))
        x = torch.tensor(0)
        for t in pyro.markov(range(len(y))):
            x = pyro.sample(f"x_{t}", dist.Categorical(torch.tensor(P)[x]))
            pyro.sample(f"y_{t}", dist.Normal(m[x], 1.0), obs=y[t])

    fit = probdl.infer(alone, SERIES[0], method=LAPLACE, seed=1)
    with pytest.raises(probdl.ModelError, match="depend on one another"):
        fit.log_likelihood()
    _, log_p = paths(fit.draws["m"][0], SERIES[:1])
    joint = logsumexp(logsumexp(log_p, -1)) - np.log(1000)
    np.testing.assert_allclose(fit.log_predictive().joint, joint)


def annotators(votes):
    """Dawid and Skene's model of the classes of items, from the votes of annotators."""
    prevalence = pyro.sample("prevalence", dist.Beta(2.0, 2.0))
    with pyro.plate("annotator", votes.shape[1], dim=-1):
        hit = pyro.sample("hit", dist.Beta(8.0, 2.0))
    with pyro.plate("item", len(votes), dim=-2):
        z = pyro.sample("class", dist.Bernoulli(prevalence))
        with pyro.plate("annotator_", votes.shape[1], dim=-1):
            pyro.sample("vote", dist.Bernoulli(torch.where(z == 1, hit, 1 - hit)), obs=votes)


VOTES = np.array([[1, 1, 0], [0, 0, 0], [1, 0, 1], [0, 1, 0], [1, 1, 1], [0, 0, 1]])


@pytest.fixture(scope="module")
def annotated():
    coords = {"item": list("abcdef"), "annotator_": list("xyz")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return probdl.infer(annotators, VOTES, method=LAPLACE, seed=1, coords=coords)


def class_scores(fit):
    """Return the log probabilities of class and votes, (draws, item, class)."""
    p, hit = fit.draws["prevalence"][0][:, None], fit.draws["hit"][0][:, None]
    right = np.log(np.where(VOTES == 1, hit, 1 - hit)).sum(-1) + np.log(p)
    wrong = np.log(np.where(VOTES == 1, 1 - hit, hit)).sum(-1) + np.log(1 - p)
    return np.stack([wrong, right], -1)


def test_the_classes_of_items(annotated):
    z = annotated.discrete()["class"]
    assert z.shape[:3] == (1, 1000, 6)
    p = np.exp(log_softmax(class_scores(annotated), -1))[..., 1]
    assert_shares(z.reshape(1000, 6), p)


def test_items_are_scored_with_all_their_votes(annotated):
    expected = logsumexp(class_scores(annotated), -1)
    found = annotated.log_likelihood()["vote"]
    np.testing.assert_allclose(found[0], expected)
    idata = annotated.idata
    stored = idata.log_likelihood["vote"]
    assert stored.dims == ("chain", "draw", "item")
    assert stored["item"].values.tolist() == list("abcdef")
    np.testing.assert_allclose(variables(idata, "log_likelihood")["vote"][0], expected)
    loo = az.loo(idata, pointwise=True)
    assert loo.pareto_k.dims == ("item",)
    total = float(loo.elpd if hasattr(loo, "elpd") else loo.elpd_loo)
    # By hand, with plain importance weights: p(y_i | y_-i) is the harmonic mean of p(y_i | θ).
    by_hand = (np.log(1000) - logsumexp(-expected, axis=0)).sum()
    assert total == pytest.approx(by_hand, abs=0.1)


def test_replicates_of_votes_keep_the_class_of_their_item(annotated):
    votes = annotated.predict()["vote"][0]
    hit, p = annotated.draws["hit"][0][:, None], class_scores(annotated)
    p = np.exp(log_softmax(p, -1))[..., 1:]
    assert_shares(votes, p * hit + (1 - p) * (1 - hit))


def test_two_outcomes_with_one_label_are_scored_together():
    y = np.array([[0.0, 0.3], [2.0, 1.5], [1.0, 1.0]])

    def model(y):
        m = pyro.sample("m", dist.Normal(2.0, 0.1))
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("first", dist.Normal(m * z, 1.0), obs=y[:, 0])
            pyro.sample("second", dist.Normal(m * z, 1.0), obs=y[:, 1])
            pyro.sample("other", dist.Normal(m, 1.0), obs=y[:, 1])

    fit = probdl.infer(model, y, method=LAPLACE, seed=1)
    points = fit.log_likelihood()
    m = fit.draws["m"][0][:, None]
    by_hand = np.logaddexp(
        norm(0, 1).logpdf(y).sum(1), norm(m[..., None], 1).logpdf(y).sum(-1)
    ) - np.log(2)
    assert list(points) == ["observations", "other"]
    np.testing.assert_allclose(points["observations"][0], by_hand)
    np.testing.assert_allclose(points["other"][0], norm(m, 1).logpdf(y[:, 1]))


def test_a_model_without_discrete_sites_is_an_error():
    fit = probdl.infer(probdl.models.normal_normal, np.ones(2), np.ones(2), method="map", seed=1)
    with pytest.raises(probdl.ModelError, match="no discrete latent site"):
        fit.discrete()
