"""Pointwise log likelihoods of observations that discrete sites tie together: masks, factors,
DataLoaders, dimensions and saved fits."""

import warnings

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy.special import logsumexp
from scipy.stats import norm
from torch.utils.data import DataLoader, TensorDataset

import probdl

pytestmark = pytest.mark.filterwarnings("ignore::probdl.FindingWarning")

LAPLACE = probdl.Laplace(draws=200)
RNG = np.random.default_rng(0)
VOTES = (RNG.random((6, 3)) < 0.5).astype(float)
GIVEN = RNG.random((6, 3)) < 0.7
GIVEN[:2] = [[False, False, False], [True, False, False]]
FILLED = np.where(GIVEN, VOTES, 0.0)


def annotators(votes, given=True):
    prevalence = pyro.sample("prevalence", dist.Beta(2.0, 2.0))
    hit = pyro.sample("hit", dist.Beta(8.0, 2.0).expand([3]).to_event(1))
    with pyro.plate("item", len(votes), dim=-2):
        z = pyro.sample("class", dist.Bernoulli(prevalence))
        with pyro.plate("annotator", 3, dim=-1), poutine.mask(mask=torch.as_tensor(given)):
            pyro.sample("vote", dist.Bernoulli(torch.where(z == 1, hit, 1 - hit)), obs=votes)


def scores(fit, votes=VOTES, given=GIVEN):
    p, hit = fit.draws["prevalence"][0][:, None], fit.draws["hit"][0][:, None]
    right = (given * np.log(np.where(votes == 1, hit, 1 - hit))).sum(-1) + np.log(p)
    wrong = (given * np.log(np.where(votes == 1, 1 - hit, hit))).sum(-1) + np.log(1 - p)
    return np.logaddexp(wrong, right)


@pytest.fixture(scope="module")
def masked():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return probdl.infer(
            annotators, FILLED, GIVEN, method=LAPLACE, seed=1, coords={"item": list("abcdef")}
        )


def test_an_item_without_votes_is_no_observation(masked):
    points = masked.log_likelihood()["vote"]
    np.testing.assert_allclose(points[0], scores(masked), atol=1e-12)
    assert (points[..., 0] == 0).all()
    container = masked.idata
    stored = container.log_likelihood["vote"]
    assert stored.dims == ("chain", "draw", "item_observed")
    assert stored["item_observed"].values.tolist() == list("bcdef")
    np.testing.assert_array_equal(stored.values, points[..., 1:])
    np.testing.assert_array_equal(container.observed_data["vote"], VOTES[GIVEN])
    assert container.posterior_predictive["vote"].shape == (1, 200, GIVEN.sum())
    score = masked.log_predictive()
    assert score.count == 5
    assert score.total == pytest.approx(np.nansum(score.pointwise["vote"]))
    by_hand = (np.log(200) - logsumexp(-scores(masked)[:, 1:], axis=0)).sum()
    for loo in (masked.loo(), az.loo(container, pointwise=True)):
        assert loo.n_data_points == 5
        assert float(loo.elpd if hasattr(loo, "elpd") else loo.elpd_loo) == pytest.approx(
            by_hand, abs=0.2
        )
    assert masked.observations["vote"].dims == ("item",)


def test_masks_do_not_change_what_is_scored_together():
    one = np.zeros((6, 3), bool)
    one[:, 0] = True  # one vote for each item, but the other votes are in the same plate
    for given in (one, np.zeros((6, 3), bool) | (np.arange(6) == 2)[:, None]):
        fit = probdl.infer(annotators, VOTES, given, method=LAPLACE, seed=1)
        np.testing.assert_allclose(
            fit.log_likelihood()["vote"][0], scores(fit, VOTES, given), atol=1e-12
        )
        assert fit.loo().n_data_points == given.any(1).sum()


def test_a_saved_fit_keeps_the_scores_of_items(masked, tmp_path):
    masked.save(tmp_path / "fit")
    points = masked.log_likelihood()["vote"]
    loaded = probdl.load(tmp_path / "fit", model=annotators)
    np.testing.assert_array_equal(loaded.log_likelihood()["vote"], points)
    bare = probdl.load(tmp_path / "fit", model=None)  # it does not know which items have no vote
    np.testing.assert_array_equal(bare.log_likelihood()["vote"], points[..., 1:])
    for fit in (loaded, bare):
        assert fit.loo().n_data_points == 5
        stored = fit.to_idata().log_likelihood["vote"]
        assert stored.dims == ("chain", "draw", "item_observed")
        assert stored["item_observed"].values.tolist() == list("bcdef")


def censored_mixture(t, event):
    rate = pyro.sample("rate", dist.LogNormal(torch.tensor([-1.0, 1.0]), 0.1).to_event(1))
    with pyro.plate("rows", len(t)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.4, 0.6])))
        with poutine.mask(mask=event):
            pyro.sample("y", dist.Exponential(rate[z]), obs=t)
        with poutine.mask(mask=~event):
            pyro.factor("censored", -rate[z] * t)


def test_an_observation_and_a_factor_with_one_label_are_scored_together():
    t, event = RNG.exponential(size=8), np.arange(8) % 3 > 0
    fit = probdl.infer(censored_mixture, t, event, method=LAPLACE, seed=1)
    rate = fit.draws["rate"][0][:, None]
    log_p = np.log([0.4, 0.6]) + event[:, None] * np.log(rate) - rate * t[:, None]
    points = fit.log_likelihood()
    assert list(points) == ["observations"]
    np.testing.assert_allclose(points["observations"][0], logsumexp(log_p, -1))
    assert fit.idata.log_likelihood["observations"].dims == ("chain", "draw", "rows")
    assert fit.loo().n_data_points == 8
    score = fit.log_predictive()
    assert score.count == 8
    joint = logsumexp(logsumexp(log_p, -1).sum(-1)) - np.log(200)
    assert score.joint == pytest.approx(joint)
    held_out = fit.cross_validate(2, workers=1)
    assert held_out.elpd == pytest.approx(score.total, abs=1.0)


def test_a_factor_outside_plates_has_a_joint_score_only():
    def model(y, far):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("y", dist.Normal(m + 3 * z, 1.0), obs=y)
        pyro.factor("far", -(m * far).sum())

    y, far = RNG.normal(size=5), np.ones(3)
    fit = probdl.infer(model, y, far, method=LAPLACE, seed=1)
    with pytest.raises(probdl.ModelError, match="'far': a factor outside all plates"):
        fit.log_likelihood()
    score = fit.log_predictive()
    m = fit.draws["m"][0][:, None]
    points = np.logaddexp(norm(m, 1).logpdf(y), norm(m + 3, 1).logpdf(y)) - np.log(2)
    np.testing.assert_allclose(score.pointwise["y"], logsumexp(points, axis=0) - np.log(200))
    assert np.isnan(score.total)
    joint = logsumexp(points.sum(1) - 3 * m[:, 0]) - np.log(200)
    assert score.joint == pytest.approx(joint)


def test_rows_of_a_loader_with_discrete_sites():
    votes = (RNG.random((40, 3)) < 0.5).astype(np.float32)
    given = RNG.random((40, 3)) < 0.6
    given[4:8] = False  # no vote in a whole batch

    def model(votes, given):
        prevalence = pyro.sample("prevalence", dist.Beta(2.0, 2.0))
        hit = pyro.sample("hit", dist.Beta(8.0, 2.0).expand([3]).to_event(1))
        with pyro.plate("item", len(votes), dim=-2):
            z = pyro.sample("class", dist.Bernoulli(prevalence))
            p = torch.where(z == 1, hit, 1 - hit)
            with pyro.plate("annotator", 3, dim=-1), poutine.mask(mask=given):
                pyro.sample("vote", dist.Bernoulli(p), obs=votes)

    data = TensorDataset(torch.from_numpy(votes), torch.from_numpy(given))
    loader = DataLoader(data, batch_size=4, shuffle=True)
    method = probdl.SVI(steps=300, draws=50)
    fit = probdl.infer(model, loader, method=method, seed=1)
    points = fit.log_likelihood()["vote"]
    np.testing.assert_allclose(points[0], scores(fit, votes, given), atol=1e-6)
    count = given.any(1).sum()
    score = fit.log_predictive()
    assert score.count == count
    assert score.joint == pytest.approx(logsumexp(points[0].sum(-1)) - np.log(50))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        stored = fit.idata.log_likelihood["vote"]
    assert stored.dims == ("chain", "draw", "item_observed")
    np.testing.assert_array_equal(stored["item_observed"], np.flatnonzero(given.any(1)))
    assert fit.loo().n_data_points == count
    # The classes of all items, given their own votes, and replicates of these votes.
    hit = fit.draws["hit"][0][:, None]
    on = np.log(fit.draws["prevalence"][0])[:, None] + np.where(
        given, np.log(np.where(votes == 1, hit, 1 - hit)), 0
    ).sum(-1)
    p = np.exp(on - points[0])
    z = fit.discrete()["class"].reshape(50, 40)
    replicates = fit.posterior_predictive()["vote"][0]
    assert replicates.shape == (50, 40, 3)
    expected = p[..., None] * hit + (1 - p[..., None]) * (1 - hit)
    for drawn, of in ((z, p), (replicates, expected)):
        error = np.sqrt((of * (1 - of)).mean(0) / len(drawn)) + 2 / len(drawn)
        assert (abs(drawn.mean(0) - of.mean(0)) < 4.5 * error).all()


def test_plates_of_other_names_and_labels():
    fit = probdl.infer(
        annotators,
        VOTES,
        method=LAPLACE,
        seed=1,
        dims={"vote": ["picture", "person"]},
        coords={"picture": list("uvwxyz")},
    )
    stored = fit.idata.log_likelihood["vote"]
    assert stored.dims == ("chain", "draw", "picture")
    assert stored["picture"].values.tolist() == list("uvwxyz")
    assert fit.idata.posterior_predictive["vote"].dims == ("chain", "draw", "picture", "person")


def test_comparison_of_items():
    def alone(votes):
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
        with pyro.plate("item", len(votes), dim=-2), pyro.plate("annotator", 3, dim=-1):
            pyro.sample("vote", dist.Bernoulli(p), obs=votes)

    a, b = (
        probdl.infer(annotators, VOTES, method=probdl.Laplace(draws=n), seed=1) for n in (500, 600)
    )
    table = probdl.compare({"a": a, "b": b})
    assert table["elpd"].iloc[0] == pytest.approx(a.log_predictive().total, abs=2.0)
    other = probdl.infer(alone, VOTES, method=LAPLACE, seed=1)
    with pytest.raises(probdl.SettingError, match="other observations"):
        probdl.compare({"a": a, "other": other})
